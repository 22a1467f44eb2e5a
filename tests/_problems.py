# SPDX-License-Identifier: Apache-2.0
"""GEMM problems of every kind: operands, a float64 oracle, and a run of one chosen kernel.

Rows and columns that a kernel must not use hold NaN, and memory handed out by malloc holds huge
numbers while `poisoned_memory` is in force, so what a kernel leaves unwritten cannot look right.
"""

import contextlib
import ctypes
import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jax_fp8gemm._src.native import calls, extension, gemm_problem, sim_library
from jax_fp8gemm.testing import TOLERANCE

BLOCK = 128
CONTIGUOUS_ALIGNMENT = 128
_KEPT = 8  # problems whose operands and products stay in memory
_GUARD_BYTES = 4096
_ADDRESS_SPACE = 1 << 48
_PERTURB_OPTION = -6  # M_PERTURB of mallopt
_PERTURB_BYTE = 0x80  # glibc fills with the complement: 0x7f7f is 3e38 as bfloat16, NaN as float16


def ceil_div(a: int, b: int) -> int:
    """Returns a / b, rounded up."""
    return -(-a // b)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One call of `_ffi.matmul`, in the terms of the kernels (csrc/gemm/problem.h)."""

    kind: str
    m: int
    n: int
    k: int
    # group_sizes, masked_m or group_ids; None when dense.
    group_data: tuple[int, ...] | None = None
    num_groups: int = 1
    rhs_is_1x128: bool = False
    lhs_dtype: str = "float8_e4m3fn"
    rhs_dtype: str = "float8_e4m3fn"
    dtype: str = "bfloat16"
    accumulate: bool = False
    zero_padding: bool = True
    positive: bool = False  # all values positive, all scales 1
    seed: int = 0

    @property
    def lhs_rows(self) -> int:
        """Rows of the left operand."""
        return self.m * self.num_groups if self.kind == "masked" else self.m

    @property
    def rhs_rows(self) -> int:
        """Rows of the right operand, of all groups."""
        return self.n if self.kind in ("dense", "k_grouped") else self.n * self.num_groups

    @property
    def d_rows(self) -> int:
        """Rows of the result, of all groups."""
        return self.m * self.num_groups if self.kind == "k_grouped" else self.lhs_rows

    def numbers(self) -> tuple[np.ndarray, ...]:
        """Returns lhs values and scales, rhs values and scales."""
        return _numbers(self.values_only())

    def values_only(self) -> "Problem":
        """Returns a problem of the same operands and product, for caches."""
        return dataclasses.replace(self, dtype="float32", accumulate=False, zero_padding=True)


def problem_for(key: str) -> Problem:
    """Returns a problem that is hard for the configuration `key`.

    Three tiles along N, and along M where M is one extent, end in the middle of a tile and leave a
    cluster half empty; K has more blocks than the pipeline has stages and, where it may, a tail.
    """
    c = extension.core().describe_config(key)
    kind, block_m = c["kind"], c["block_m"]
    problem = Problem(
        kind=kind,
        m=2 * block_m + block_m // 2 + 4,
        n=2 * c["block_n"] + 8,
        k=(c["num_stages"] + 1) * BLOCK + 16,
        rhs_is_1x128=c["scaling"] == "1d1d",
        lhs_dtype=c["a_type"],
        rhs_dtype=c["b_type"],
        dtype=c["d_type"],
        accumulate=c["accumulate"],
    )
    if c["split_k"] > 1:  # the last CTA of a cluster gets fewer blocks of K than the others
        k_blocks = (c["num_stages"] + 1) * c["split_k"] - 1
        k = (k_blocks - 1) * BLOCK + 16
        return dataclasses.replace(problem, m=block_m + 4, n=c["block_n"] + 8, k=k)
    if kind == "ragged":  # an empty group, one of one row, and rows past the last group
        sizes = (2 * block_m - 3, 0, 1, block_m)
        rows = sum(sizes) + block_m // 2 + 6
        return dataclasses.replace(problem, m=rows, num_groups=4, group_data=sizes)
    if kind == "contiguous":  # group 1 has no rows, the last tile only padding
        ids = (0,) * 100 + (-1,) * 28 + (2,) * 130 + (-1,) * 254
        return dataclasses.replace(problem, m=len(ids), num_groups=3, group_data=ids)
    if kind == "masked":  # groups begin at rows that are no multiples of four
        rows = block_m + block_m // 2 + 3
        masks = (rows, 0, 3, block_m + 1)
        return dataclasses.replace(problem, m=rows, num_groups=4, group_data=masks)
    if kind == "k_grouped":  # and a block of K past the last group
        sizes = (100, 0, (c["num_stages"] + 1) * BLOCK - 28)
        k = (c["num_stages"] + 3) * BLOCK
        return dataclasses.replace(problem, k=k, num_groups=3, group_data=sizes)
    return problem


@dataclasses.dataclass(frozen=True)
class Segment:
    """A block of the result that is one product: rows and range of K, and which weights."""

    lhs_rows: slice
    d_row: int
    group: int
    k: slice


def segments(problem: Problem) -> list[Segment]:
    """Returns the products a problem consists of; rows in none of them are zero."""
    p, everything = problem, slice(0, problem.k)
    if p.kind == "dense":
        return [Segment(slice(0, p.m), 0, 0, everything)]
    if p.kind == "masked":
        counts = [min(max(size, 0), p.m) for size in p.group_data]
        starts = [g * p.m for g in range(p.num_groups)]
        return [
            Segment(slice(s, s + c), s, g, everything)
            for g, (s, c) in enumerate(zip(starts, counts, strict=True))
        ]
    if p.kind == "contiguous":
        return [
            Segment(slice(row, row + 1), row, group, everything)
            for row, group in enumerate(p.group_data)
            if 0 <= group < p.num_groups
        ]
    result, start = [], 0
    for g, size in enumerate(p.group_data):
        size = max(size, 0)
        if p.kind == "k_grouped":
            end = min(start + ceil_div(size, BLOCK) * BLOCK, ceil_div(p.k, BLOCK) * BLOCK)
            result.append(Segment(slice(0, p.m), g * p.m, g, slice(start, min(end, p.k))))
        else:
            end = min(start + size, p.m)
            result.append(Segment(slice(start, end), start, g, everything))
        start = end
    return result


@functools.lru_cache(maxsize=_KEPT)
def _numbers(problem: Problem) -> tuple[np.ndarray, ...]:
    """Returns lhs values and scales, rhs values and scales, as NumPy arrays."""
    p = problem
    rng = np.random.default_rng([p.seed, p.m, p.n, p.k])
    k_blocks = ceil_div(p.k, BLOCK)
    rhs_scale_rows = p.rhs_rows if p.rhs_is_1x128 else p.rhs_rows // p.n * ceil_div(p.n, BLOCK)

    def values(rows: int, dtype: str) -> np.ndarray:
        numbers = rng.standard_normal((rows, p.k), np.float32)
        return (np.abs(numbers) if p.positive else numbers).astype(jnp.dtype(dtype))

    def scales(rows: int) -> np.ndarray:
        if p.positive:
            return np.ones((rows, k_blocks), np.float32)
        # Powers of two, as different as neighbours can be: a scale of the wrong row shows.
        return np.exp2(rng.integers(-3, 4, (rows, k_blocks))).astype(np.float32) * np.float32(1.25)

    lhs, rhs = values(p.lhs_rows, p.lhs_dtype), values(p.rhs_rows, p.rhs_dtype)
    if p.kind == "k_grouped":
        _clear_k_padding(p, lhs, rhs)
    elif p.kind != "dense":
        unused = np.ones(p.lhs_rows, bool)
        for segment in segments(p):
            unused[segment.lhs_rows] = False
        lhs[unused] = np.nan
    return lhs, scales(p.lhs_rows), rhs, scales(rhs_scale_rows)


def _clear_k_padding(problem: Problem, *operands: np.ndarray) -> None:
    """Sets to zero what lies between the end of a group and its last block of K."""
    start = 0
    for size in problem.group_data:
        size = max(size, 0)
        end = start + ceil_div(size, BLOCK) * BLOCK
        for operand in operands:
            operand[:, start + size : end] = 0
        start = end


@functools.lru_cache(maxsize=_KEPT)
def _product(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Returns the float64 result and the sums of magnitudes, without accumulator."""
    p = problem
    lhs, lhs_scales, rhs, rhs_scales = _numbers(p)
    a = lhs.astype(np.float64) * lhs_scales.astype(np.float64).repeat(BLOCK, 1)[:, : p.k]
    scales = rhs_scales.astype(np.float64).repeat(BLOCK, 1)[:, : p.k]
    if not p.rhs_is_1x128:
        groups = scales.reshape(p.rhs_rows // p.n, -1, p.k)
        scales = groups.repeat(BLOCK, 1)[:, : p.n].reshape(p.rhs_rows, p.k)
    b = rhs.astype(np.float64) * scales
    ref, magnitude = np.zeros((p.d_rows, p.n)), np.zeros((p.d_rows, p.n))
    for s in _merged(segments(p)):
        a_part = a[s.lhs_rows, s.k]
        first = 0 if p.kind in ("dense", "k_grouped") else s.group * p.n
        b_part = b[first : first + p.n, s.k]
        d = slice(s.d_row, s.d_row + a_part.shape[0])
        ref[d] = a_part @ b_part.T
        # Only a bound: float32 is exact enough.
        magnitude[d] = np.abs(a_part).astype(np.float32) @ np.abs(b_part).astype(np.float32).T
    return ref, magnitude


def exact(problem: Problem) -> np.ndarray:
    """Returns the float64 result, without accumulator."""
    return _product(problem.values_only())[0]


def _merged(parts: list[Segment]) -> list[Segment]:
    """Joins segments of single rows that follow each other and use the same weights."""
    result: list[Segment] = []
    for part in parts:
        last = result[-1] if result else None
        if last and last.group == part.group and last.lhs_rows.stop == part.lhs_rows.start:
            result[-1] = dataclasses.replace(
                last, lhs_rows=slice(last.lhs_rows.start, part.lhs_rows.stop)
            )
        else:
            result.append(part)
    return result


@functools.lru_cache(maxsize=_KEPT)
def _operands(problem: Problem) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(x) for x in _numbers(problem))


def _accumulator(problem: Problem) -> np.ndarray:
    rng = np.random.default_rng([problem.seed, 1])
    numbers = 4 * rng.standard_normal((problem.d_rows, problem.n), np.float32)
    return numbers.astype(jnp.dtype(problem.dtype))


def arguments(problem: Problem) -> list[jax.Array | None]:
    """Returns lhs, its scales, rhs, its scales, group data, accumulator; None where there is none.

    They are on JAX's default device.
    """
    p = problem
    group_data = None if p.group_data is None else jnp.asarray(p.group_data, jnp.int32)
    accumulator = jnp.asarray(_accumulator(p)) if p.accumulate else None
    return [*_operands(p.values_only()), group_data, accumulator]


def product(
    problem: Problem, operands, *, config: str = "", num_sms: int | None = None, backend: str
) -> jax.Array:
    """Returns what the kernel `config`, or the heuristics' choice, makes of `arguments`."""
    p = problem
    *factors, group_data, accumulator = operands
    planned = gemm_problem.problem_of(
        p.kind,
        factors,
        rhs_block=(1, BLOCK) if p.rhs_is_1x128 else (BLOCK, BLOCK),
        result_dtype=p.dtype,
        accumulate=p.accumulate,
        num_groups=p.num_groups,
        zero_padding=p.zero_padding and p.kind == "masked",
    )
    options = {"num_sms": num_sms, "backend": backend, "config": config}
    return calls.matmul(planned, factors, group_data, accumulator, **options)


def run(problem: Problem, *, config: str = "", num_sms: int | None = None) -> np.ndarray:
    """Returns the result of a problem, computed by the simulated kernel that `config` names.

    Group data and weight scales, which kernels read by address, lie between zones that no kernel
    may touch.
    """
    operands, guards = arguments(problem), []
    for index in (3, 4) if not problem.rhs_is_1x128 else (4,):
        if operands[index] is not None:
            operands[index], guard = _guarded(np.asarray(operands[index]))
            guards.append(guard)
    _allow_global_memory(guards)
    # NumPy waits for the kernel.
    out = np.asarray(product(problem, operands, config=config, num_sms=num_sms, backend="sim"))
    _allow_global_memory([])
    return out


def _guarded(array: np.ndarray) -> tuple[jax.Array, tuple[int, int, int]]:
    """Returns an array that shares memory of ours, and where: start of the zone, start, size.

    A zone of `_GUARD_BYTES` on either side belongs to it and to nothing else.
    """
    zone = np.full(array.nbytes + 2 * _GUARD_BYTES + 64, 0x7F, np.uint8)
    start = -zone.ctypes.data % 64 + _GUARD_BYTES
    inside = zone[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    inside[:] = array
    shared = jax.device_put(inside, may_alias=True)
    if shared.unsafe_buffer_pointer() != inside.ctypes.data:
        raise RuntimeError("JAX copied an aligned NumPy array")
    return shared, (zone.ctypes.data, inside.ctypes.data, array.nbytes)


def _allow_global_memory(guards: list[tuple[int, int, int]]) -> None:
    """Lets the simulator's kernels touch all memory but the zones around `guards`; all without."""
    ranges, end = [], 0
    for zone, start, size in sorted(guards):
        ranges += [(end, zone - end), (start, size)]
        end = start + size + _GUARD_BYTES
    if guards:
        ranges.append((end, _ADDRESS_SPACE - end))
    flat = (ctypes.c_uint64 * (2 * len(ranges)))(*(x for pair in ranges for x in pair))
    sim_library._library().Fp8GemmSimSetGlobalRanges(flat, ctypes.c_uint64(len(ranges)))


def mismatch(problem: Problem, out: np.ndarray, *, implementation: str = "sim") -> str:
    """Returns where a result is further from float64 than `TOLERANCE` allows; empty if nowhere."""
    p = problem
    ref, magnitude = _product(p.values_only())
    if p.accumulate:
        accumulator = _accumulator(p).astype(np.float64)
        ref, magnitude = ref + accumulator, magnitude + np.abs(accumulator)
    dtype = jnp.dtype(p.dtype)
    bound = TOLERANCE[dtype.name, implementation] * magnitude
    bound += float(jnp.finfo(dtype).smallest_normal)
    wrong = ~(np.abs(out.astype(np.float64) - ref) <= bound)
    if p.kind == "masked" and not p.zero_padding:
        wrong &= _is_product_row(p)[:, None]
    if not wrong.any():
        return ""
    row, column = np.argwhere(wrong)[0]
    return (
        f"{wrong.sum()} of {wrong.size} elements are wrong, the first is ({row}, {column}): got "
        f"{float(out[row, column]):.6g}, want {ref[row, column]:.6g} within "
        f"{bound[row, column]:.3g}"
    )


def _is_product_row(problem: Problem) -> np.ndarray:
    rows = np.zeros(problem.d_rows, bool)
    for segment in segments(problem):
        rows[segment.lhs_rows] = True
    return rows


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Makes malloc hand out memory full of huge numbers, where the C library is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_PERTURB_OPTION, _PERTURB_BYTE)
    try:
        yield
    finally:
        if mallopt is not None:
            mallopt(_PERTURB_OPTION, 0)
