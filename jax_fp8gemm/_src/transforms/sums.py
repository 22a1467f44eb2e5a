# SPDX-License-Identifier: Apache-2.0
"""Adds up what devices computed of one result: in floating point, or exchanged in FP8.

In FP8 every device rounds its partial result once, sends each device the part that is that one's to
add up, and adds up its own in float32: half the bytes of bfloat16, where a sum that travels from
device to device would be rounded by each. Where all devices need the whole sum, it is rounded once
more, and sent to them.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.tables import BLOCK
from jax_fp8gemm._src.xla import gemm as xla_gemm

# Returns values and scales of x `(..., R, K)`, with block (1, 128).
Quantize = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def add_up(
    partial: jax.Array,
    summed: tuple[str, ...],
    scattered: Mapping[int, tuple[str, ...]],
    quantize: Quantize | None,
) -> jax.Array:
    """Returns one device's part of the sum over devices.

    Args:
        partial: What the device has computed.
        summed: Mesh axes that the sum is over, and whose devices all get it.
        scattered: By dimension, mesh axes that the sum is over too; each device gets a part.
        quantize: Rounds what devices send each other, and the sum is in float32; None to add up in
            the dtype of `partial`.
    """
    total = partial
    for dim, mesh_axes in scattered.items():
        total = scatter(total, mesh_axes, dim, quantize)
    if not summed:
        return total
    return lax.psum(total, summed) if quantize is None else _whole_sum(total, summed, quantize)


def scatter(
    partial: jax.Array, mesh_axes: tuple[str, ...], dim: int, quantize: Quantize | None
) -> jax.Array:
    """Returns the sum over devices, of which each gets a part along a dimension."""
    if quantize is None:
        return lax.psum_scatter(partial, mesh_axes, scatter_dimension=dim, tiled=True)
    count = lax.axis_size(mesh_axes)
    shape = partial.shape
    parts = partial.reshape(*shape[:dim], count, shape[dim] // count, *shape[dim + 1 :])
    return _own_sum(jnp.moveaxis(parts, dim, 0), mesh_axes, quantize)


def _whole_sum(partial: jax.Array, mesh_axes: tuple[str, ...], quantize: Quantize) -> jax.Array:
    """Returns the sum over devices, which all get."""
    count = lax.axis_size(mesh_axes)
    rows = -(-partial.size // (count * BLOCK))
    flat = jnp.pad(partial.reshape(-1), (0, count * rows * BLOCK - partial.size))
    own = _own_sum(flat.reshape(count, rows, BLOCK), mesh_axes, quantize)
    whole = _received(lambda each: lax.all_gather(each, mesh_axes), *quantize(own))
    return whole.reshape(-1)[: partial.size].reshape(partial.shape)


def _own_sum(parts: jax.Array, mesh_axes: tuple[str, ...], quantize: Quantize) -> jax.Array:
    """Returns the sum of what all devices have of this one's part; `parts` has one for each."""
    return _received(lambda each: lax.all_to_all(each, mesh_axes, 0, 0), *quantize(parts)).sum(0)


def _received(exchange: Callable, values: jax.Array, scales: jax.Array) -> jax.Array:
    """Returns in float32 what is exchanged: bits, which XLA does not widen before they travel."""
    bits = exchange(lax.bitcast_convert_type(values, jnp.uint8))
    values = lax.bitcast_convert_type(bits, values.dtype)
    return xla_gemm.dequantize(values, exchange(scales), checks.ROW_BLOCK)
