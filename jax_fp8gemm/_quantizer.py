# SPDX-License-Identifier: Apache-2.0
"""The operation behind the quantisers: derivative, batches, division among devices, implementation.

Called by _quantize.py, _quantize_transposed.py and _weight_gradient.py; calls _ffi.quantize or
_xla_quantize.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from jax_fp8gemm import _checks, _dispatch, _distribute, _sharding, _xla_quantize

SCALE_FORMATS = ("float32", "pow2")
_BLOCK = 128


class Options(NamedTuple):
    """The static part of a call.

    Attributes:
        where: Public name, for messages.
        layout: "rows", "blocks", "transposed" or "k_grouped".
        dtype: Dtype of the values.
        scale_format: One of SCALE_FORMATS.
        implementation: As in the public functions.
        name: What x is called in messages.
        axes: What its last two dimensions are called.
    """

    where: str
    layout: str
    dtype: np.dtype
    scale_format: str
    implementation: str | None
    name: str = "x"
    axes: tuple[str, str] = ("r", "k")


# Compiled as one program when called outside of jax.jit, inlined when called inside.
@functools.partial(jax.jit, static_argnums=1, inline=True)
def apply(operands: tuple, options: Options) -> tuple[jax.Array, jax.Array]:
    """Returns values and scales.

    Args:
        operands: x `(..., R, K)` in floating point, None, and for "k_grouped" the sizes `(..., G)`;
            or for transposed layouts values and scales of x with block (1, 128).
        options: The static part.
    """
    operands = _dispatch.unify_varying(operands)
    quantise = jax.custom_jvp(functools.partial(_batched, options))

    @quantise.defjvp
    def differentiate(primals, tangents):
        _, tangent = jax.jvp(functools.partial(_xla, options), primals, tangents)
        return quantise(*primals), tangent

    return quantise(*operands)


def _batched(options: Options, *operands) -> tuple[jax.Array, jax.Array]:
    """Returns the results; jax.vmap adds a leading dimension to all operands."""

    @custom_vmap
    def divided(*operands):
        automatic = options.implementation != "xla"  # which XLA divides well by itself
        return _distribute.apply(_operation(options, operands), operands, automatic=automatic)

    @divided.def_vmap
    def batch(axis_size, in_batched, *operands):
        operands = (
            x if x is None or is_batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            for x, is_batched in zip(operands, in_batched, strict=True)
        )
        return _batched(options, *operands), (True, True)

    return divided(*operands)


def _operation(options: Options, operands: tuple) -> _sharding.Operation:
    """Describes a call to the planner."""
    x, x_scales, group_sizes = operands
    leads = _sharding.names("b", x.ndim - 2)
    whole = ()
    if options.layout in ("rows", "blocks"):
        rows, columns = options.axes
        scale_rows = rows if options.layout == "rows" else f"{rows}/128"
        dims, results = options.axes, (options.axes, (scale_rows, f"{columns}/128"))
    elif options.layout == "transposed":
        dims, results = ("t", "r"), (("r", "t"), ("r", "t/128"))
    else:
        dims, results, whole = ("t", "r"), (("r", "w"), ("r", "w/128")), ("t", "g", "w")
    return _sharding.Operation(
        where=options.where,
        layout=_sharding.Layout(
            operands=(
                (*leads, *dims),
                None if x_scales is None else (*leads, "t", "r/128"),
                None if group_sizes is None else (*leads, "g"),
            ),
            results=tuple((*leads, *dims) for dims in results),
            names=(options.name, "x scales", "group_sizes"),
            whole=whole,
        ),
        compute=lambda *operands: on_one_device(operands, options),
        key=options,
    )


def on_one_device(operands: tuple, options: Options) -> tuple[jax.Array, jax.Array]:
    """Returns the results on one device, by the implementation for the platform lowered for."""
    xla = functools.partial(_xla, options)
    kernel = functools.partial(_kernel, options)
    if not all(x is None or x.size for x in operands):  # nothing to quantise

        def kernel(*operands, backend):
            return xla(*operands)

    return _dispatch.by_platform(
        options.where,
        options.implementation,
        operands,
        kernel=kernel,
        xla=xla,
        results=result_types(options, operands),
    )


def result_types(options: Options, operands: tuple) -> tuple:
    """Returns the types of values and scales."""
    x, _, group_sizes = operands
    *lead, rows, columns = x.shape
    block_rows = _BLOCK if options.layout == "blocks" else 1
    if options.layout in ("transposed", "k_grouped"):
        rows, columns = columns, rows
    if group_sizes is not None:
        columns = _BLOCK * _xla_quantize.aligned_blocks(columns, group_sizes.shape[-1])
    scales = (*lead, -(-rows // block_rows), -(-columns // _BLOCK))
    return (
        jax.ShapeDtypeStruct((*lead, rows, columns), options.dtype),
        jax.ShapeDtypeStruct(scales, jnp.float32),
    )


def _xla(options: Options, x, x_scales, group_sizes) -> tuple[jax.Array, jax.Array]:
    last = (options.dtype, options.scale_format)
    if options.layout in ("transposed", "k_grouped"):
        leaves = (x,) if x_scales is None else (x, x_scales)
        return _xla_quantize.quantize_transposed(leaves, group_sizes, *last)
    block = _checks.ROW_BLOCK if options.layout == "rows" else _checks.SQUARE_BLOCK
    return _xla_quantize.quantize(x, block, *last)


def _kernel(options: Options, *operands, backend: str) -> tuple[jax.Array, jax.Array]:
    """Calls the kernel with all leading dimensions merged to one, or into the rows."""
    from jax_fp8gemm import _ffi  # here, so that importing the package loads no extension

    x, x_scales, group_sizes = operands
    *lead, rows, _ = x.shape
    batch, count = math.prod(lead), x.ndim - 2
    if options.layout == "rows":
        batch = 1
    merged = (
        x.reshape(batch, -1, x.shape[-1]),
        None if x_scales is None else x_scales.reshape(batch, *x_scales.shape[count:]),
        None if group_sizes is None else group_sizes.reshape(batch, -1),
    )
    like_values, like_scales = result_types(options, merged)
    values, scales = _ffi.quantize(
        options.layout,
        *merged,
        values_shape=like_values.shape,
        scales_shape=like_scales.shape,
        dtype=options.dtype,
        scale_format=options.scale_format,
        backend=backend,
    )
    if options.layout == "rows":
        return values.reshape(x.shape), scales.reshape(*lead, rows, -1)
    return values.reshape(*lead, *values.shape[1:]), scales.reshape(*lead, *scales.shape[1:])
