# SPDX-License-Identifier: Apache-2.0
"""The custom calls: from validated operands to attributes, layouts and buffers of the handlers.

Products have one target and quantizers another, each for all kinds and both platforms: kernels on
CUDA, the simulator on the CPU. Above this module operands are called lhs and rhs, below it a and b.
Calls the handlers of csrc/ffi.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_fp8gemm._src.native import environment, extension, ranking
from jax_fp8gemm._src.native.gemm_problem import Problem
from jax_fp8gemm._src.tables import TMA_ALIGNMENT_BYTES
from jax_fp8gemm._src.xla import activation as xla_activation

# Rows to which TMA's alignment pads float32 scales with rows innermost.
_SCALE_ROWS = TMA_ALIGNMENT_BYTES // 4


def _pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Returns x with zeros appended along `axis` up to a multiple."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths)


def _addressable(
    factors: Sequence[jax.Array], rhs_is_1x128: bool
) -> tuple[list[jax.Array], list[tuple[int, int]]]:
    """Returns the operands as TMA can address them, and their layouts, major to minor."""
    lhs_values, lhs_scales, rhs_values, rhs_scales = (lax.collapse(x, 0, -1) for x in factors)
    operands = [
        _pad(lhs_values, 1, TMA_ALIGNMENT_BYTES),
        _pad(lhs_scales, 0, _SCALE_ROWS),
        _pad(rhs_values, 1, TMA_ALIGNMENT_BYTES),
        _pad(rhs_scales, 0, _SCALE_ROWS) if rhs_is_1x128 else rhs_scales,
    ]
    rows_innermost = (1, 0)
    return operands, [(0, 1), rows_innermost, (0, 1), rows_innermost if rhs_is_1x128 else (0, 1)]


def matmul(
    problem: Problem,
    factors: Sequence[jax.Array],
    group_data: jax.Array | None = None,
    accumulator: jax.Array | None = None,
    *,
    num_sms: int | None,
    backend: str,
    config: str = "",
) -> jax.Array:
    """Returns `(problem.d_rows, n)`, the products of one matrix or of groups, from a custom call.

    Operands are validated and not empty; groups may be a dimension of their own. What TMA cannot
    address is padded here: rows of the operands and of the result to 16 bytes, rows of 1x128 scales
    to four (the kernels want rows innermost). That costs a small kernel where M is no multiple of
    four; padding operands copies them, which only happens where K is not a multiple of 16 or N not
    one of 8.

    Args:
        problem: What is computed; its SMs are those of `num_sms` or of the device.
        factors: Values and scales of lhs, `(lhs rows, K)` and `(lhs rows, ceil(K / 128))`, and of
            rhs, groups one after the other. With 128x128 blocks the scales of rhs are
            `(groups * ceil(n / 128), ceil(K / 128))`.
        group_data: int32: `group_sizes`, `masked_m` or `group_ids`; None for "dense".
        accumulator: As the result, or None.
        num_sms: Most SMs to use, or None.
        backend: "cuda" or "sim".
        config: Key of the configuration to use; empty for that of the tuned table of the first
            GPU's model, or where it has none the heuristics'.
    """
    extension.core()
    problem = problem._replace(num_sms=extension.planning_num_sms(backend, num_sms))
    if not config and (entry := ranking.tuned_entry(problem, extension.planning_gpu(backend))):
        config = entry.best.config
    dtype, n = np.dtype(problem.d_dtype), problem.n
    d_alignment = TMA_ALIGNMENT_BYTES // dtype.itemsize
    d_pitch = n + -n % d_alignment
    result = jax.typeof(factors[0]).update(shape=(problem.d_rows, d_pitch), dtype=dtype)
    operands, layouts = _addressable(factors, rhs_is_1x128=problem.scaling == "1d1d")
    aliases = {}
    if group_data is not None:
        operands.append(group_data)
    if accumulator is not None:
        aliases = {len(operands): 0}
        operands.append(_pad(lax.collapse(accumulator, 0, -1), 1, d_alignment))
    padded = jax.ffi.ffi_call(
        extension.GEMM_TARGET,
        result,
        input_layouts=layouts + [None] * (len(operands) - len(layouts)),
        output_layouts=(0, 1),
        input_output_aliases=aliases,
    )(
        *operands,
        **problem._asdict(),
        pdl=environment.pdl(),
        sm_limit=num_sms or 0,
        config=config,
    )
    return padded if d_pitch == n else padded[:, :n]


# Rows innermost, behind a batch: how the kernels of products read scales per 1x128.
_ROWS_INNERMOST = (0, 2, 1)


def quantize(
    kind: str,
    x: jax.Array,
    types: Sequence[jax.ShapeDtypeStruct],
    *,
    scales: jax.Array | None = None,
    up: jax.Array | None = None,
    group_sizes: jax.Array | None = None,
    row_factors: jax.Array | None = None,
    column_factors: jax.Array | None = None,
    scale_format: str,
    backend: str,
) -> tuple[jax.Array, ...]:
    """Returns float8 values and scales of a batch of matrices, from a custom call.

    Operands are validated and not empty. Scales per 1x128 come with rows innermost, padded as
    `matmul` wants them, and cut to size: for multiples of four no copy lies between the two.

    Args:
        kind: As `ops.quantizer.Quantizer` has it.
        x: `(B, R, K)`.
        types: Types of values and of scales, in turns: `(B, ., .)`, but along rows those of the
            scales, and of the rows of two kinds together, are `(1, ., .)` of all rows.
        scales: `(B, R, ceil(K / 128))` float32 if x is float8.
        up: What a gated activation multiplies, as x; None where it lies behind x in each row of
            `2 * K`.
        group_sizes: `(B, G)` int32 for groups, else None.
        row_factors: `(B, R)` float32, of a norm.
        column_factors: `(B, K)` float32, of a norm.
        scale_format: "float32" or "pow2".
        backend: "cuda" or "sim".
    """
    extension.core()
    batch, rows, columns = x.shape
    if kind in xla_activation.GATED and up is None:
        columns //= 2
    given = [(x, (0, 1, 2)), (scales, _ROWS_INNERMOST), (up, (0, 1, 2)), (group_sizes, (0, 1))]
    given += [(row_factors, (0, 1)), (column_factors, (0, 1))]
    operands, layouts = zip(*(each for each in given if each[0] is not None), strict=True)
    like = jax.typeof(x)
    rows_innermost = kind != "blocks"
    padded, result_layouts = [], []
    for each in types:
        is_scales = each.dtype == np.float32
        shape = list(each.shape)
        if is_scales and rows_innermost:
            shape[1] += -shape[1] % _SCALE_ROWS
        padded.append(like.update(shape=tuple(shape), dtype=each.dtype))
        result_layouts.append(_ROWS_INNERMOST if is_scales and rows_innermost else (0, 1, 2))
    results = jax.ffi.ffi_call(
        extension.QUANTIZE_TARGET,
        padded,
        input_layouts=layouts,
        output_layouts=result_layouts,
    )(
        *operands,
        layout=kind,
        batches=batch,
        rows=rows,
        columns=columns,
        num_groups=0 if group_sizes is None else group_sizes.shape[1],
        x_dtype=x.dtype.name,
        dtype=types[0].dtype.name,
        scale_format=scale_format,
    )
    return tuple(y[:, : t.shape[1]] for y, t in zip(results, types, strict=True))
