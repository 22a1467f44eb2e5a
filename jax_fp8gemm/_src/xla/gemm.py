# SPDX-License-Identifier: Apache-2.0
"""The "xla" implementation: every operation in plain JAX, for any device; the tests' oracle."""

import jax
import jax.numpy as jnp
from jax import lax


def as_float32(x: jax.Array) -> jax.Array:
    """Returns x in float32, with the digits that its dtype has.

    XLA may hand an operation inside the same program the float32 from before it was rounded to x
    (`xla_allow_excess_precision`). A kernel reads what was rounded, and so does this.
    """
    if x.dtype == jnp.float16:  # whose subnormals `reduce_precision` would make zeros
        x = lax.optimization_barrier(x)
    wide = x.astype(jnp.float32)
    return lax.reduce_precision(wide, 8, 7) if x.dtype == jnp.bfloat16 else wide


def bit_cast(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns the bits of x as another dtype of the same width.

    Behind a barrier: XLA folds the bit cast of a transposed constant into the bits of the constant
    before it was transposed (tests/test_constants.py shows both).
    """
    return lax.bitcast_convert_type(lax.optimization_barrier(x), dtype)


def dequantize(values: jax.Array, scales: jax.Array, block: tuple[int, int]) -> jax.Array:
    """Returns the dequantized float32 array of block-scaled values.

    Written as one elementwise product with a broadcast, which XLA fuses into a single pass.
    """
    return values.astype(jnp.float32) * per_element(scales, block, values.shape)


def per_element(scales: jax.Array, block: tuple[int, int], shape: tuple[int, ...]) -> jax.Array:
    """Returns the scale of each element of an array of a shape."""
    rows, columns = shape[-2:]
    if block[0] > 1:
        scales = _repeat(scales, block[0], scales.ndim - 2)[..., :rows, :]
    return _repeat(scales, block[1], scales.ndim - 1)[..., :columns]


def _repeat(x: jax.Array, count: int, axis: int) -> jax.Array:
    """Returns `jnp.repeat(x, count, axis)`, which refuses one that an explicit mesh shards."""
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    dims = [i + (i > axis) for i in range(x.ndim)]
    wide = lax.broadcast_in_dim(x, (*before, x.shape[axis], count, *after), dims)
    return wide.reshape(*before, x.shape[axis] * count, *after)


def product(
    lhs_values: jax.Array,
    lhs_scales: jax.Array,
    rhs_values: jax.Array,
    rhs_scales: jax.Array,
    *,
    rhs_block: tuple[int, int],
    axes: tuple[tuple[str, ...], ...],
) -> jax.Array:
    """Returns the float32 product of the dequantized operands, over the axes not in the result.

    Args:
        lhs_values: Values with block (1, 128) in the last two dimensions.
        lhs_scales: Their scales.
        rhs_values: Values with block `rhs_block` in the last two dimensions.
        rhs_scales: Their scales.
        rhs_block: (128, 128) or (1, 128).
        axes: Names of the dimensions of lhs, rhs and result.
    """
    number = {name: i for i, name in enumerate(dict.fromkeys(sum(axes, ())))}
    lhs_axes, rhs_axes, result_axes = ([number[name] for name in each] for each in axes)
    return jnp.einsum(
        dequantize(lhs_values, lhs_scales, (1, 128)),
        lhs_axes,
        dequantize(rhs_values, rhs_scales, rhs_block),
        rhs_axes,
        result_axes,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
