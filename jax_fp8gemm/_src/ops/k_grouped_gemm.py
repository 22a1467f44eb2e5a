# SPDX-License-Identifier: Apache-2.0
"""k_grouped_gemm: groups along K, one result each, as gradients of grouped weights are."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_fp8gemm._src.operands import checks, group_checks
from jax_fp8gemm._src.operands.block_scaled import Operand, as_block_scaled
from jax_fp8gemm._src.ops import grouped
from jax_fp8gemm._src.tables import BLOCK
from jax_fp8gemm._src.transforms.apply import apply
from jax_fp8gemm._src.transforms.operation import Layout
from jax_fp8gemm._src.xla import grouped as xla_grouped


def k_grouped_gemm(
    lhs: Operand,
    rhs: Operand,
    group_sizes: jax.Array,
    *,
    accumulator: jax.Array | None = None,
    preferred_element_type: Any = jnp.float32,
    implementation: str | None = None,
    num_sms: int | None = None,
) -> jax.Array:
    """Multiplies groups of columns, each giving a matrix of its own: the grouped weight gradient.

    Group g starts at column `sum(ceil128(group_sizes[:g]))`, with `ceil128` rounding up to a
    multiple of 128, and `columns(g)` are its `group_sizes[g]` columns::

        out[g] = accumulator[g] + lhs[:, columns(g)] @ rhs[:, columns(g)].T

    of the dequantized operands, in float32 and rounded once. The columns from a group's last one
    to the next multiple of 128 must hold zeros, as `quantize_k_grouped` writes them. The sizes are
    read on the device only. Results are bitwise deterministic. The range of scales is
    that of `gemm`.

    Args:
        lhs: `(M, T)` with block (1, 128), as `BlockScaled` or as a plain `(values, scales)`: tokens
            are columns. Those past the last group may hold anything.
        rhs: `(N, T)` with block (1, 128).
        group_sizes: `(G,)` of any integer dtype, zeros allowed, G at most 512. A negative size
            counts as 0 and what passes T is cut off; the results that this shifts are unspecified.
            `testing.check_groups` reports it.
        accumulator: `(G, M, N)` of dtype `preferred_element_type`, added before the rounding; or
            None. It may be donated.
        preferred_element_type: Dtype of the result: `float32`, `bfloat16` or `float16`.
        implementation: None, "cuda", "xla" or "sim", as for `gemm`.
        num_sms: Use at most this many SMs, 1 to 1024; None for all of them.

    Returns:
        `(G, M, N)` array of dtype `preferred_element_type`; for an empty group zeros, or its
        accumulator unchanged.

    Raises:
        TypeError: An argument has an unsupported type or dtype; or the result is differentiated.
        ValueError: Shapes disagree, an operand has another block, there are more than 512 groups
            or more than 2**31 - 513 rows in all, `implementation` is unknown, `num_sms` is
            out of range, or an explicit mesh shards T.
        NotImplementedError: As `gemm`.
        jax.errors.JaxRuntimeError: As `gemm`.

        The first two are raised while tracing, before anything is compiled.

    Transformations:
        `jit`, `scan`, `shard_map`: yes. `vmap`: yes; with shared `group_sizes` and one shared
        operand it stays one kernel launch, with the batch folded into M or N. Else the launches
        follow one another. `grad`, `jvp`: TypeError. Sharding: M and N stay sharded without
        communication. T must be replicated: an automatic mesh gathers it, an explicit one raises
        ValueError.

    Example:
        >>> dy_columns = quantize_k_grouped(dy, group_sizes)       # (N, T'): (T, N) transposed
        >>> x_columns = quantize_k_grouped(tokens, group_sizes)    # (K, T'): (T, K) transposed
        >>> dw = k_grouped_gemm(dy_columns, x_columns, group_sizes)    # (G, N, K) float32
    """
    op_name = "k_grouped_gemm"
    op = KGrouped(*grouped.options(op_name, preferred_element_type, implementation, num_sms))
    lhs = as_block_scaled(op_name, "lhs", lhs, (checks.ROW_BLOCK,))
    rhs = as_block_scaled(op_name, "rhs", rhs, (checks.ROW_BLOCK,))
    checks.matrix(op_name, "lhs", lhs)
    checks.matrix(op_name, "rhs", rhs)
    checks.same_extent(op_name, lhs, rhs, "N, T")
    num_columns = lhs.scales.shape[-1] * BLOCK
    group_sizes = group_checks.sizes(op_name, group_sizes, num_columns, align=BLOCK)
    shape = (group_sizes.size, lhs.shape[0], rhs.shape[0])
    checks.addressable(op_name, "the result", shape)
    if accumulator is not None:
        checks.accumulator(op_name, accumulator, shape, op.result_dtype, "G, M, N")
    operands = (lhs.values, lhs.scales, rhs.values, rhs.scales, group_sizes, accumulator)
    return apply(op, operands)


@dataclasses.dataclass(frozen=True)
class KGrouped(grouped.Grouped):
    """The product of groups of columns."""

    kind = "k_grouped"
    rhs_block = checks.ROW_BLOCK

    def layout(self, *operands) -> Layout:
        lhs, rhs, result = ("m", "t"), ("n", "t"), ("g", "m", "n")
        return Layout(
            operands=(lhs, ("m", "t/128"), rhs, ("n", "t/128"), ("g",), result),
            results=(result,),
            names=("lhs", "lhs scales", "rhs", "rhs scales", "group_sizes", "accumulator"),
            replicated=("t", "g"),
        ).of_present(operands)

    def products(self, *operands) -> jax.Array:
        return xla_grouped.k_grouped(*operands, preferred_element_type=self.result_dtype)

    def shared(self, in_batched):
        lhs_batched, rhs_batched = (in_batched[i] or in_batched[i + 1] for i in (0, 2))
        if in_batched[4] or lhs_batched and rhs_batched:
            return ()
        return (0, 1, 4) if rhs_batched else (2, 3, 4)

    def can_fold(self, operands):
        return operands[4].ndim == 1

    def fold(self, apply, operands):
        # The batch goes into M or N of the result.
        axis, first = (2, 2) if operands[2].ndim == 3 else (1, 0)
        operands = list(operands)
        batch, extent, _ = operands[first].shape
        for i in (first, first + 1):
            operands[i] = lax.collapse(operands[i], 0, 2)
        if operands[5] is not None:
            accumulator = jnp.moveaxis(operands[5], 0, axis)
            operands[5] = lax.collapse(accumulator, axis, axis + 2)
        out = apply(self, tuple(operands))
        shape = (*out.shape[:axis], batch, extent, *out.shape[axis + 1 :])
        return jnp.moveaxis(out.reshape(shape), axis, 0)
