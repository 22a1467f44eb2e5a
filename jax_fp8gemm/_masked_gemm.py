# SPDX-License-Identifier: Apache-2.0
"""grouped_gemm_masked: groups with equal room, of which only the leading rows count."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jax_fp8gemm import (
    _checks,
    _group_checks,
    _grouped_gemm,
    _grouping,
    _sharding,
    _xla_grouped,
)
from jax_fp8gemm._block_scaled import as_block_scaled
from jax_fp8gemm._grouping import Operand, Options


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
    """Multiplies the leading rows of groups with equal room, each with its own weight.

    As in decoding, where shapes are static and a group is seldom full::

        out[g, m] = lhs[g, m] @ rhs[g].T        and 0 where m >= masked_m[g]

    of what the operands stand for, in float32 and rounded once. The counts are read on the device
    only, and time follows them rather than the room. Results are the same bits from call to call.

    Args:
        lhs: `(G, M_max, K)` with block (1, 128), as `BlockScaled` or as a plain `(values, scales)`;
            rows that do not count may hold anything.
        rhs: `(G, N, K)` with block (128, 128), K last; any N and at most 512 groups.
        masked_m: `(G,)` `int32`, how many rows of each group count. A number below 0 counts as 0,
            one above M_max as M_max; `testing.check_groups` reports it.
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
            `expected_m` or `num_sms` is out of range, or an explicit mesh divides M_max or a block
            of 128.
        NotImplementedError: As `gemm`.
        jax.errors.JaxRuntimeError: As `gemm`.

        The first two are raised while tracing, before anything is compiled.

    Transformations:
        `jit`, `scan`, `shard_map`: yes. `vmap`: yes, and it stays one kernel launch: a batch of
        `rhs` makes more groups (beyond 512, launches follow one another), and with a shared `rhs`
        the rows of the batch are sorted by group. `grad`, `jvp`: TypeError. Sharding: G and N stay
        divided without communication, and K divided on both sides costs one all-reduce. M_max must
        be whole: an automatic mesh gathers it, an explicit one raises ValueError.

    Example:
        >>> x = quantize(slots)                            # (G, M_max, K)
        >>> w = quantize(experts, block=(128, 128))        # (G, N, K)
        >>> y = grouped_gemm_masked(x, w, masked_m, expected_m=8)
    """
    where = "grouped_gemm_masked"
    options = _grouping.options(where, preferred_element_type, implementation, num_sms)
    _checks.one_of(where, "padding", padding, _checks.PADDINGS)
    expected_m = 0 if expected_m is None else _checks.extent(where, "expected_m", expected_m, 0)
    lhs = as_block_scaled(where, "lhs", lhs, (_checks.ROW_BLOCK,))
    _checks.groups(where, "lhs", lhs, "G, M_max, K")
    _checks.addressable(where, "lhs", lhs.shape)
    rhs = _grouping.weights(where, rhs)
    _checks.num_groups(where, "rhs", rhs.shape[0])
    _checks.same_k(where, lhs, rhs, "G, N, K")
    if lhs.shape[0] != rhs.shape[0]:
        raise ValueError(
            f"{where}: rhs must have shape (G, N, K) with the G of lhs = {lhs.shape[0]},"
            f" got {tuple(rhs.shape)}."
        )
    _checks.group_data(where, "masked_m", masked_m, (lhs.shape[0],), "G")
    _group_checks.each_at_most(where, "masked_m", masked_m, lhs.shape[1])
    # Beyond the room there is nothing to expect.
    options = options._replace(
        expected_m=min(expected_m, lhs.shape[1]), zero_padding=padding == "zero"
    )
    operands = (lhs.values, lhs.scales, rhs.values, rhs.scales, masked_m)
    return _grouping.apply(_masked, operands, options)


_LAYOUT = _sharding.Layout(
    operands=(
        ("g", "m", "k"),
        ("g", "m", "k/128"),
        ("g", "n", "k"),
        ("g", "n/128", "k/128"),
        ("g",),
    ),
    results=(("g", "m", "n"),),
    names=("lhs", "lhs scales", "rhs", "rhs scales", "masked_m"),
    whole=("m",),
)


def _by_platform(options: Options, operands: tuple) -> jax.Array:
    (num_groups, m, _), n = operands[0].shape, operands[2].shape[1]
    shape = (num_groups, m, n)

    def kernel(*operands, backend):
        extents = {"m": m, "n": n, "num_groups": num_groups, "d_rows": num_groups * m}
        out = _grouping.kernel_call("masked", options, operands, backend, **extents)
        return out.reshape(shape)

    def xla(lhs_values, lhs_scales, rhs_values, rhs_scales, masked_m):
        rows = map(_grouping.as_matrix, (lhs_values, lhs_scales))
        segments = _xla_grouped.masked_segments(masked_m, m)
        out = _xla_grouped.grouped_rows(
            *rows, rhs_values, rhs_scales, segments, options.result_dtype
        )
        return out.reshape(shape)

    return _grouping.by_platform(options, operands, shape, kernel=kernel, xla=xla)


def _masked(options: Options):
    """Returns the product of masked groups, with its batching rule."""

    @custom_vmap
    def single(*operands):
        return _grouping.divided(_by_platform, options, _LAYOUT, operands)

    def fold(axis_size, in_batched, *operands):
        shared = _grouping.shared_weights(in_batched)
        operands = _grouping.batch_all(axis_size, in_batched, operands, shared)
        lhs_values, lhs_scales, rhs_values, rhs_scales, masked_m = operands
        batch, num_groups, m, _ = lhs_values.shape
        if shared:
            group, row = (
                lax.broadcasted_iota(jnp.int32, (batch, num_groups, m), i) for i in (1, 2)
            )
            ids = jnp.where(row < masked_m[..., None], group, -1).reshape(batch, num_groups * m)
            rows = [x.reshape(batch, num_groups * m, x.shape[-1]) for x in (lhs_values, lhs_scales)]
            ragged = _grouped_gemm.ragged(options._replace(expected_m=0, zero_padding=False))
            out = _grouping.fold_rows(ragged, ids, (*rows, rhs_values, rhs_scales))
            return out.reshape(batch, num_groups, m, rhs_values.shape[1]), True
        if masked_m.size > _checks.MAX_GROUPS:
            return lax.map(lambda each: single(*each), operands), True
        out = single(*map(_grouping.merge_leading, operands))
        return out.reshape(batch, num_groups, *out.shape[1:]), True

    _grouping.fold_batches(single, fold, _masked, options, _LAYOUT)
    return single
