# SPDX-License-Identifier: Apache-2.0
"""grouped_gemm_masked: groups padded to a common capacity; only their leading rows are valid."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_fp8gemm._src.operands import checks, group_checks
from jax_fp8gemm._src.operands.block_scaled import Operand, as_block_scaled
from jax_fp8gemm._src.ops import grouped
from jax_fp8gemm._src.ops.grouped_gemm import Ragged
from jax_fp8gemm._src.transforms.apply import apply
from jax_fp8gemm._src.transforms.operation import Layout
from jax_fp8gemm._src.xla import grouped as xla_grouped


def grouped_gemm_masked(
    lhs: Operand,
    rhs: Operand,
    masked_m: jax.Array,
    *,
    expected_m: int | None = None,
    padding: str = "zero",
    preferred_element_type: Any = jnp.bfloat16,
    implementation: str | None = None,
    num_sms: int | None = None,
) -> jax.Array:
    """Multiplies the valid rows of groups padded to a common capacity, each with its own weight.

    As in decoding, where shapes are static and a group is seldom full::

        out[g, m] = lhs[g, m] @ rhs[g].T        and 0 where m >= masked_m[g]

    of the dequantized operands, in float32 and rounded once. The counts are read on the device
    only, and time follows them rather than the capacity. Results are bitwise deterministic.
    The range of scales is that of `gemm`.

    Args:
        lhs: `(G, M_max, K)` with block (1, 128), as `BlockScaled` or as a plain `(values, scales)`;
            rows that do not count may hold anything.
        rhs: `(G, N, K)` with block (128, 128), K last; any N and at most 512 groups.
        masked_m: `(G,)` of any integer dtype, how many rows of each group count. A number below 0
            counts as 0, one above M_max as M_max; `testing.check_groups` reports it.
        expected_m: How many rows of a group are likely to count, at least 0, by which the kernel is
            chosen; None if unknown. It does not change the result beyond rounding.
        padding: "zero" writes zeros to the rows that do not count; "unspecified" saves that.
        preferred_element_type: Dtype of the result: `bfloat16`, `float16` or `float32`.
        implementation: None, "cuda", "xla" or "sim", as for `gemm`.
        num_sms: Use at most this many SMs, 1 to 1024; None for all of them.

    Returns:
        `(G, M_max, N)` array of dtype `preferred_element_type`.

    Raises:
        TypeError: An argument has an unsupported type or dtype; or the result is differentiated.
        ValueError: Shapes disagree, an operand has another block, there are more than 512 groups
            or more than 2**31 - 513 rows in all, `padding` or `implementation` is unknown,
            `expected_m` or `num_sms` is out of range, or an explicit mesh shards M_max.
        NotImplementedError: As `gemm`.
        jax.errors.JaxRuntimeError: As `gemm`.

        The first two are raised while tracing, before anything is compiled.

    Transformations:
        `jit`, `scan`, `shard_map`: yes. `vmap`: yes, and it stays one kernel launch: a batch of
        `rhs` makes more groups (beyond 512, launches follow one another), and with a shared `rhs`
        the rows of the batch are sorted by group. `grad`, `jvp`: TypeError. Sharding: G and N stay
        sharded without communication, and K sharded on both sides costs one all-reduce. M_max must
        be replicated: an automatic mesh gathers it, an explicit one raises ValueError.

    Example:
        >>> x = quantize(slots)                            # (G, M_max, K)
        >>> w = quantize(experts, block=(128, 128))        # (G, N, K)
        >>> y = grouped_gemm_masked(x, w, masked_m, expected_m=8)
    """
    op_name = "grouped_gemm_masked"
    options = grouped.options(op_name, preferred_element_type, implementation, num_sms)
    checks.one_of(op_name, "padding", padding, checks.PADDINGS)
    expected_m = 0 if expected_m is None else checks.extent(op_name, "expected_m", expected_m, 0)
    lhs = as_block_scaled(op_name, "lhs", lhs, (checks.ROW_BLOCK,))
    checks.groups(op_name, "lhs", lhs, "G, M_max, K")
    checks.addressable(op_name, "lhs", lhs.shape)
    rhs = grouped.weights(op_name, lhs, rhs)
    checks.same_extent(op_name, lhs, rhs, "G, N, K", 0, 0)
    masked_m = group_checks.counts(op_name, masked_m, *lhs.shape[:2])
    # Beyond the capacity there is nothing to expect.
    op = Masked(*options, min(expected_m, lhs.shape[1]), zero_padding=padding == "zero")
    operands = (lhs.values, lhs.scales, rhs.values, rhs.scales, masked_m)
    return apply(op, operands)


@dataclasses.dataclass(frozen=True)
class Masked(grouped.Grouped):
    """The product of groups padded to a common capacity, whose leading rows are valid.

    Attributes:
        expected_m: Rows that a group is likely to have; 0 if unknown.
        zero_padding: Whether rows of padding become zeros.
    """

    kind = "masked"
    expected_m: int = 0
    zero_padding: bool = False

    def layout(self, *operands) -> Layout:
        return grouped.rows_layout(("g", "m"), ("g",), "masked_m", replicated=("m",))

    def kernel(self, *operands, backend: str) -> jax.Array:
        fields = {"expected_m": self.expected_m, "zero_padding": self.zero_padding}
        return super().kernel(*operands, backend=backend, **fields)

    def products(self, *operands) -> jax.Array:
        lhs_values, lhs_scales, rhs_values, rhs_scales, masked_m = operands
        segments = xla_grouped.masked_segments(masked_m, lhs_values.shape[1])
        out = xla_grouped.grouped_rows(
            lax.collapse(lhs_values, 0, 2),
            lax.collapse(lhs_scales, 0, 2),
            rhs_values,
            rhs_scales,
            segments=segments,
            dtype=self.result_dtype,
        )
        return out.reshape(self.result_types(*operands).shape)

    def fold(self, apply, operands):
        lhs_values, lhs_scales, rhs_values, rhs_scales, masked_m = operands
        batch, num_groups, m, _ = lhs_values.shape
        if rhs_values.ndim == 4:
            out = apply(self, tuple(lax.collapse(x, 0, 2) for x in operands))
            return out.reshape(batch, num_groups, *out.shape[1:])
        # One weight for all batches: their valid rows are groups anywhere.
        group, row = (lax.broadcasted_iota(jnp.int32, (batch, num_groups, m), i) for i in (1, 2))
        ids = jnp.where(row < masked_m[..., None], group, -1).reshape(batch, num_groups * m)
        rows = [x.reshape(batch, num_groups * m, x.shape[-1]) for x in (lhs_values, lhs_scales)]
        ragged = Ragged(self.op_name, self.result_dtype, self.implementation, self.num_sms)
        out = grouped.fold_rows(apply, ragged, ids, (*rows, rhs_values, rhs_scales))
        return out.reshape(batch, num_groups, m, rhs_values.shape[1])
