# SPDX-License-Identifier: Apache-2.0
"""quantize_transposed and quantize_k_grouped: operands of weight gradients, scaled along tokens."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_fp8gemm import _checks, _distribute, _group_checks, _quantize, _sharding, _xla_grouped
from jax_fp8gemm._block_scaled import BlockScaled

_BLOCK = 128
_COLUMN_BLOCK = (_BLOCK, 1)


def quantize_transposed(
    x: jax.Array,
    *,
    dtype: Any = jnp.float8_e4m3fn,
    scale_format: str = "float32",
    implementation: str | None = None,
) -> BlockScaled:
    """Quantises the transpose of an array with one scale per 128 rows of each of its columns.

    Equal to `quantize(jnp.swapaxes(x, -1, -2))`: what the product of a weight gradient, which sums
    over tokens, wants of activations and of gradients. XLA fuses the transposition.

    Args:
        x: `(..., T, R)`, `bfloat16`, `float16` or `float32`.
        dtype: `float8_e4m3fn` or `float8_e5m2`.
        scale_format: "float32" or "pow2", as for `quantize`.
        implementation: None, "cuda", "xla" or "sim", as for `quantize`.

    Returns:
        `BlockScaled` with values of shape `(..., R, T)`, scales of shape `(..., R, ceil(T / 128))`
        and block (1, 128).

    Raises:
        TypeError: As `quantize`.
        ValueError: As `quantize`.

    Transformations:
        As `quantize`.

    Example:
        >>> dw = gemm(quantize_transposed(dy), quantize_transposed(activations))   # (N, K)
    """
    x, dtype = _validated("quantize_transposed", x, dtype, scale_format, implementation)
    return _transposed(x, None, dtype, scale_format)


def quantize_k_grouped(
    x: jax.Array,
    group_sizes: jax.Array,
    *,
    dtype: Any = jnp.float8_e4m3fn,
    scale_format: str = "float32",
    implementation: str | None = None,
) -> BlockScaled:
    """Quantises groups of rows, back to back, to the transposed operand of `k_grouped_gemm`.

    The rows of group g become the `group_sizes[g]` columns from `sum(ceil128(group_sizes[:g]))` on,
    with `ceil128` rounding up to a multiple of 128; all other columns are zeros with scale 1. Each
    scale is that of 128 rows of one group and one column of `x`, so that no group sees another.
    The sizes are read on the device only.

    Args:
        x: `(T, R)`, `bfloat16`, `float16` or `float32`, with groups as in `grouped_gemm`. Rows past
            the last group may hold anything.
        group_sizes: `(G,)` `int32`, as for `grouped_gemm`.
        dtype: `float8_e4m3fn` or `float8_e5m2`.
        scale_format: "float32" or "pow2", as for `quantize`.
        implementation: None, "cuda", "xla" or "sim", as for `quantize`.

    Returns:
        `BlockScaled` with values of shape `(R, W)`, scales of shape `(R, W / 128)` and block
        (1, 128). W is the most that group sizes can need: the largest multiple of 128 up to
        `T + 127 * G`.

    Raises:
        TypeError: As `quantize`, or `group_sizes` is not `int32`.
        ValueError: As `quantize`, or `x` or `group_sizes` has another number of dimensions.

    Transformations:
        As `quantize`.

    Example:
        >>> dy_columns = quantize_k_grouped(dy, group_sizes)
        >>> x_columns = quantize_k_grouped(tokens, group_sizes)
        >>> dw = k_grouped_gemm(dy_columns, x_columns, group_sizes)    # (G, N, K) float32
    """
    where = "quantize_k_grouped"
    x, dtype = _validated(where, x, dtype, scale_format, implementation)
    _checks.matrix(where, "x", x)
    _checks.array(where, "group_sizes", group_sizes, (jnp.dtype(jnp.int32),))
    _checks.group_data(where, "group_sizes", group_sizes, (group_sizes.size,), "G")
    _group_checks.sizes(where, "group_sizes", group_sizes, x.shape[0])
    return _transposed(x, group_sizes, dtype, scale_format)


def _validated(where: str, x, dtype, scale_format, implementation) -> tuple[jax.Array, Any]:
    _checks.array(where, "x", x, _checks.RESULT_DTYPES)
    _checks.at_least_2d(where, "x", x)
    dtype = _checks.dtype_of(where, "dtype", dtype, _checks.FP8_DTYPES)
    _checks.one_of(where, "scale_format", scale_format, _quantize.SCALE_FORMATS)
    _checks.implementation(where, implementation)
    return jnp.asarray(x), dtype


# Compiled as one program when called outside of jax.jit, inlined when called inside.
@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)
def _transposed(x: jax.Array, group_sizes: jax.Array | None, dtype, scale_format) -> BlockScaled:
    """Quantises the transpose of x; its rows in groups, or all of them as they are."""
    leads = _sharding.names("b", x.ndim - 2)
    has_groups = group_sizes is not None
    operation = _sharding.Operation(
        where="quantize_k_grouped" if has_groups else "quantize_transposed",
        layout=_sharding.Layout(
            operands=((*leads, "t", "r"), ("g",) if has_groups else None),
            results=((*leads, "r", "t"), (*leads, "r", "t/128")),
            names=("x", "group_sizes"),
            whole=("t", "g") if has_groups else (),
        ),
        compute=lambda x, sizes: on_one_device(x, sizes, dtype, scale_format),
    )
    out = _distribute.apply(operation, (x, group_sizes), automatic=False)
    return BlockScaled.tree_unflatten(_checks.ROW_BLOCK, out)


def on_one_device(x, group_sizes, dtype, scale_format) -> tuple[jax.Array, jax.Array]:
    """Returns values and scales of what one device holds.

    Scaled first and transposed as float8. Without the barrier XLA would choose one layout for both
    uses of x, and write the transpose of x in 32 bits for the sake of the values; with it, it reads
    x once for the scales and once for the values.
    """
    options = (_COLUMN_BLOCK, dtype, scale_format)
    scales = _quantize.block_scales(_aligned(x, group_sizes), *options)
    again = lax.optimization_barrier(x)
    values = _quantize.block_values(_aligned(again, group_sizes), scales, *options)
    return jnp.swapaxes(values, -1, -2), jnp.swapaxes(scales, -1, -2)


def _aligned(x: jax.Array, group_sizes: jax.Array | None) -> jax.Array:
    """Returns the rows with each group, if any, from a multiple of 128 on, and zeros in between."""
    if group_sizes is None:
        return x
    num_rows, num_groups = x.shape[0], len(group_sizes)
    num_blocks = (num_rows + (_BLOCK - 1) * num_groups) // _BLOCK
    if not num_rows or not num_groups:
        return jnp.zeros_like(x, shape=(num_blocks * _BLOCK, x.shape[1]))
    ends = _xla_grouped.running_ends(group_sizes, num_rows)
    starts = _xla_grouped.starts_of(ends)
    block_ends = jnp.cumsum(-(-(ends - starts) // _BLOCK))
    block = jnp.arange(num_blocks, dtype=jnp.int32)
    group = _xla_grouped.group_of(block_ends, block)
    group = jnp.minimum(group, num_groups - 1)  # of blocks past the last group, which are empty
    first = starts[group] + (block - _xla_grouped.starts_of(block_ends)[group]) * _BLOCK
    source = (first[:, None] + jnp.arange(_BLOCK, dtype=jnp.int32)[None]).reshape(-1)
    is_inside = source < jnp.repeat(ends[group], _BLOCK)
    return jnp.where(is_inside[:, None], jnp.take(x, source, axis=0, mode="clip"), 0)
