# SPDX-License-Identifier: Apache-2.0
"""quantize_transposed and quantize_k_grouped: operands of weight gradients, scaled along tokens."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_fp8gemm._src.operands import checks, group_checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled
from jax_fp8gemm._src.ops.quantizer import Operands, validated
from jax_fp8gemm._src.transforms.apply import apply


def quantize_transposed(
    x: jax.Array,
    *,
    dtype: Any = jnp.float8_e4m3fn,
    scale_format: str = "float32",
    implementation: str | None = None,
) -> BlockScaled:
    """Quantizes the transpose of an array with one scale per 128 rows of each of its columns.

    Equal to `quantize(jnp.swapaxes(x, -1, -2))`: what the product of a weight gradient, which sums
    over tokens, wants of activations and of gradients. The kernel reads `x` once.

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
    op_name = "quantize_transposed"
    x = _rows(op_name, x)
    op = validated(op_name, "transposed", dtype, scale_format, implementation)
    return BlockScaled.tree_unflatten(checks.ROW_BLOCK, apply(op, Operands(x)))


def quantize_k_grouped(
    x: jax.Array,
    group_sizes: jax.Array,
    *,
    dtype: Any = jnp.float8_e4m3fn,
    scale_format: str = "float32",
    implementation: str | None = None,
) -> BlockScaled:
    """Quantizes groups of rows, back to back, to the transposed operand of `k_grouped_gemm`.

    The rows of group g become the `group_sizes[g]` columns from `sum(ceil128(group_sizes[:g]))` on,
    with `ceil128` rounding up to a multiple of 128; all other columns are zeros with scale 1. Each
    scale is that of 128 rows of one group and one column of `x`, so that no group sees another.
    The sizes are read on the device only.

    Args:
        x: `(T, R)`, `bfloat16`, `float16` or `float32`, with groups as in `grouped_gemm`. Rows past
            the last group may hold anything.
        group_sizes: `(G,)` of any integer dtype, as for `grouped_gemm`.
        dtype: `float8_e4m3fn` or `float8_e5m2`.
        scale_format: "float32" or "pow2", as for `quantize`.
        implementation: None, "cuda", "xla" or "sim", as for `quantize`.

    Returns:
        `BlockScaled` with values of shape `(R, W)`, scales of shape `(R, W / 128)` and block
        (1, 128). W is the most that group sizes can need: the largest multiple of 128 up to
        `T + 127 * G`.

    Raises:
        TypeError: As `quantize`, or `group_sizes` has another dtype.
        ValueError: As `quantize`, or `x` or `group_sizes` has another number of dimensions, or
            there are more than 512 groups.

    Transformations:
        As `quantize`, but T must be replicated: an automatic mesh gathers it, an explicit one
        raises ValueError.

    Example:
        >>> dy_columns = quantize_k_grouped(dy, group_sizes)
        >>> x_columns = quantize_k_grouped(tokens, group_sizes)
        >>> dw = k_grouped_gemm(dy_columns, x_columns, group_sizes)    # (G, N, K) float32
    """
    op_name = "quantize_k_grouped"
    x = _rows(op_name, x)
    checks.matrix(op_name, "x", x)
    group_sizes = group_checks.sizes(op_name, group_sizes, x.shape[0])
    op = validated(op_name, "k_grouped", dtype, scale_format, implementation)
    operands = Operands(x, None, group_sizes)
    (values, _) = op.result_types(*operands)
    checks.addressable(op_name, "the result", values.shape)
    return BlockScaled.tree_unflatten(checks.ROW_BLOCK, apply(op, operands))


def _rows(op_name: str, x) -> jax.Array:
    x = checks.floating(op_name, "x", x)
    checks.at_least_2d(op_name, "x", x)
    checks.addressable(op_name, "x", x.shape[-2:])
    return x
