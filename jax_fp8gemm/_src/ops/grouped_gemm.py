# SPDX-License-Identifier: Apache-2.0
"""grouped_gemm and grouped_gemm_contiguous: groups of rows, each with a weight of its own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_fp8gemm._src.operands import checks, group_checks
from jax_fp8gemm._src.operands.block_scaled import Operand, as_block_scaled
from jax_fp8gemm._src.ops import grouped
from jax_fp8gemm._src.ops.quantizer import sum_quantizer
from jax_fp8gemm._src.tables import CONTIGUOUS_ALIGNMENT
from jax_fp8gemm._src.transforms.apply import apply
from jax_fp8gemm._src.transforms.operation import Layout
from jax_fp8gemm._src.xla import gemm as xla_gemm
from jax_fp8gemm._src.xla import grouped as xla_grouped


def grouped_gemm(
    lhs: Operand,
    rhs: Operand,
    group_sizes: jax.Array,
    *,
    accumulator: jax.Array | None = None,
    preferred_element_type: Any = jnp.bfloat16,
    implementation: str | None = None,
    num_sms: int | None = None,
) -> jax.Array:
    """Multiplies groups of rows, back to back and of any size, each with its own weight.

    Row t belongs to the group g with `sum(group_sizes[:g]) <= t < sum(group_sizes[:g + 1])`::

        out[t] = lhs[t] @ rhs[g].T        and 0 where t >= sum(group_sizes)

    of the dequantized operands, in float32 and rounded once. The sizes are read on the device
    only: nothing waits for them, and no row is padded. Results are bitwise deterministic.
    The range of scales is that of `gemm`.

    Args:
        lhs: `(T, K)` with block (1, 128), as `BlockScaled` or as a plain `(values, scales)`; any T
            and K. Values are `float8_e4m3fn` or `float8_e5m2`, independently of `rhs`. Rows past
            the last group may hold anything.
        rhs: `(G, N, K)` with block (128, 128), K last; any N and at most 512 groups.
        group_sizes: `(G,)` of any integer dtype, zeros allowed. A negative size counts as 0 and
            what passes T is cut off; the rows that this shifts are unspecified.
            `testing.check_groups` reports it.
        accumulator: `(T, N)` of dtype `preferred_element_type`, added before the rounding, also to
            rows of no group; or None. It is added to the kernel's float32 result, in one more pass.
        preferred_element_type: Dtype of the result: `bfloat16`, `float16` or `float32`.
        implementation: None, "cuda", "xla" or "sim", as for `gemm`.
        num_sms: Use at most this many SMs, 1 to 1024; None for all of them.

    Returns:
        `(T, N)` array of dtype `preferred_element_type`.

    Raises:
        TypeError: An argument has an unsupported type or dtype; or the result is differentiated.
        ValueError: Shapes disagree, an operand has another block, there are more than 512 groups
            or more than 2**31 - 513 rows in all, `implementation` is unknown, `num_sms` is
            out of range, or an explicit mesh shards T or G.
        NotImplementedError: As `gemm`.
        jax.errors.JaxRuntimeError: As `gemm`.

        The first two are raised while tracing, before anything is compiled.

    Transformations:
        `jit`, `scan`, `shard_map`: yes. `vmap`: yes, and it stays one kernel launch, for which the
        rows of the batch are sorted by group; only where a batch of `rhs` makes more than 512
        groups do the launches follow one another. `grad`, `jvp`: TypeError; what trains wraps
        this in `jax.custom_vjp`. Sharding: N stays sharded without communication, and K sharded
        on both sides costs one all-reduce. T and G must be replicated, because any row may belong
        to any group: an automatic mesh gathers them, an explicit one raises ValueError; shard them
        by `jax.shard_map`, each device with groups of its own.

    Example:
        >>> x = quantize(tokens)                           # (T, K), sorted by expert
        >>> w = quantize(experts, block=(128, 128))        # (G, N, K)
        >>> y = grouped_gemm(x, w, group_sizes)            # (T, N) bfloat16
    """
    op_name = "grouped_gemm"
    dtype = checks.result_dtype(op_name, preferred_element_type)
    product_dtype = dtype if accumulator is None else jnp.float32
    op = Ragged(*grouped.options(op_name, product_dtype, implementation, num_sms))
    lhs, rhs = _operands(op_name, lhs, rhs)
    num_groups = rhs.shape[0]
    group_sizes = group_checks.sizes(op_name, group_sizes, lhs.shape[0], num_groups=num_groups)
    out = apply(op, (lhs.values, lhs.scales, rhs.values, rhs.scales, group_sizes))
    if accumulator is None:
        return out
    checks.accumulator(op_name, accumulator, out.shape, dtype, "T, N")
    return (out + xla_gemm.as_float32(accumulator)).astype(dtype)


def contiguous_alignment() -> int:
    """Returns the multiple of rows at which each group of `grouped_gemm_contiguous` starts.

    Returns:
        128, the most rows that a kernel's tile has.

    Raises:
        Nothing.

    Transformations:
        None: it takes and returns no arrays.

    Example:
        >>> contiguous_alignment()
        128
    """
    return CONTIGUOUS_ALIGNMENT


def grouped_gemm_contiguous(
    lhs: Operand,
    rhs: Operand,
    group_ids: jax.Array,
    *,
    preferred_element_type: Any = jnp.bfloat16,
    implementation: str | None = None,
    num_sms: int | None = None,
) -> jax.Array:
    """Multiplies rows that each name their weight, in groups that start at aligned rows.

    With `group_ids[t] = -1` in rows of padding::

        out[t] = lhs[t] @ rhs[group_ids[t]].T        and 0 where group_ids[t] is -1

    of the dequantized operands, in float32 and rounded once. A group starts at a multiple of
    `contiguous_alignment()`, and the rows from its last one to the next multiple are padding.
    Groups come in any order, also more than once or never.

    Args:
        lhs: `(T, K)` with block (1, 128), as for `grouped_gemm`; rows of padding may hold anything.
        rhs: `(G, N, K)` with block (128, 128), as for `grouped_gemm`.
        group_ids: `(T,)` of any integer dtype. Rows with an id that is neither -1 nor a group, and
            rows that share an aligned block with another group, are unspecified;
            `testing.check_groups` reports them.
        preferred_element_type: Dtype of the result: `bfloat16`, `float16` or `float32`.
        implementation: None, "cuda", "xla" or "sim", as for `gemm`.
        num_sms: Use at most this many SMs, 1 to 1024; None for all of them.

    Returns:
        `(T, N)` array of dtype `preferred_element_type`.

    Raises:
        TypeError: As `grouped_gemm`.
        ValueError: As `grouped_gemm`.
        NotImplementedError: As `gemm`.
        jax.errors.JaxRuntimeError: As `gemm`.

        The first two are raised while tracing, before anything is compiled.

    Transformations:
        `jit`, `scan`, `shard_map`: yes. `vmap`: yes, and it stays one kernel launch with the batch
        folded into T; only where a batch of `rhs` makes more than 512 groups do the launches
        follow one another. `grad`, `jvp`: TypeError. Sharding: as `grouped_gemm`, and T too stays
        sharded without communication, in multiples of `contiguous_alignment()` rows.

    Example:
        >>> x = quantize(aligned_tokens)                   # (T, K)
        >>> w = quantize(experts, block=(128, 128))        # (G, N, K)
        >>> y = grouped_gemm_contiguous(x, w, group_ids)   # (T, N) bfloat16
    """
    op_name = "grouped_gemm_contiguous"
    op = Contiguous(*grouped.options(op_name, preferred_element_type, implementation, num_sms))
    lhs, rhs = _operands(op_name, lhs, rhs)
    group_ids = group_checks.ids(
        op_name, group_ids, lhs.shape[0], rhs.shape[0], CONTIGUOUS_ALIGNMENT
    )
    operands = (lhs.values, lhs.scales, rhs.values, rhs.scales, group_ids)
    return apply(op, operands)


def _operands(op_name: str, lhs: Operand, rhs: Operand):
    lhs = as_block_scaled(op_name, "lhs", lhs, (checks.ROW_BLOCK,))
    checks.matrix(op_name, "lhs", lhs)
    return lhs, grouped.weights(op_name, lhs, rhs)


@dataclasses.dataclass(frozen=True)
class Ragged(grouped.Grouped):
    """The product of groups back to back; `reduce_dtype` as in Operation."""

    kind = "ragged"
    reduce_dtype: np.dtype = np.dtype(np.float32)

    def layout(self, *operands) -> Layout:
        """Groups lie anywhere: only columns, and K, can be sharded."""
        return grouped.rows_layout(("t",), ("g",), "group_sizes", replicated=("t", "g"))

    def sum_quantizer(self):
        return sum_quantizer(self)

    def products(self, *operands) -> jax.Array:
        segments = xla_grouped.ragged_segments(operands[4], operands[0].shape[0])
        return xla_grouped.grouped_rows(*operands[:4], segments=segments, dtype=self.result_dtype)

    def fold(self, apply, operands):
        *arrays, sizes = operands
        num_rows = arrays[0].shape[1]
        rows = jnp.arange(num_rows, dtype=jnp.int32)
        ends = jax.vmap(lambda each: xla_grouped.running_ends(each, num_rows))(sizes)
        ids = jax.vmap(xla_grouped.group_of, (0, None))(ends, rows)
        return grouped.fold_rows(apply, self, ids, arrays)


@dataclasses.dataclass(frozen=True)
class Contiguous(grouped.Grouped):
    """The product of aligned groups, whose rows name them."""

    kind = "contiguous"

    def layout(self, *operands) -> Layout:
        """Rows can be sharded where groups may start."""
        units = (("t", CONTIGUOUS_ALIGNMENT),)
        return grouped.rows_layout(("t",), ("t",), "group_ids", replicated=("g",), units=units)

    def products(self, *operands) -> jax.Array:
        ids, num_groups = operands[4], operands[2].shape[0]
        segments = xla_grouped.contiguous_segments(ids, num_groups, CONTIGUOUS_ALIGNMENT)
        products = xla_grouped.grouped_rows(
            *operands[:4], segments=segments, dtype=self.result_dtype
        )
        return jnp.where((ids >= 0)[:, None], products, 0)

    def fold(self, apply, operands):
        lhs_values, lhs_scales, *rhs, ids = operands
        num_groups, n, _ = rhs[0].shape[-3:]
        if rhs[0].ndim == 4:
            rhs = (lax.collapse(x, 0, 2) for x in rhs)
            ids = grouped.fold_ids(ids, num_groups)
        batch, num_rows = ids.shape
        missing = -num_rows % CONTIGUOUS_ALIGNMENT  # so that every batch starts at an aligned row
        widths = ((0, 0), (0, missing), (0, 0))
        rows = [jnp.pad(x, widths) if missing else x for x in (lhs_values, lhs_scales)]
        ids = jnp.pad(ids, widths[:2], constant_values=-1)
        rows = (lax.collapse(x, 0, 2) for x in rows)
        out = apply(self, (*rows, *rhs, ids.reshape(-1)))
        return out.reshape(batch, num_rows + missing, n)[:, :num_rows]
