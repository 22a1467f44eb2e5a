# SPDX-License-Identifier: Apache-2.0
"""wgmma: fragment layout of every width, operand layout, fp8 decoding, and its accumulation."""

import conformance_models as models
import numpy as np
from catalogue import MMA_WIDTHS, TYPES, mma_name
from conformance_models import E4M3, E5M2
from problems import Case, Problem, as_bytes, as_words

_FP8 = {"E4M3": E4M3, "E5M2": E5M2}
_ROWS_A = 128  # in shared memory; an instruction reads 64 of them
_BLOCK_K = 128


def _expected(a, b, start, first_step: int, num_steps: int, accumulate: bool) -> np.ndarray:
    result = start if accumulate else np.zeros_like(start)
    for step in range(first_step, first_step + num_steps):
        k = slice(32 * step, 32 * step + 32)
        result = models.mma_k32(a[:, k], b[:, k], result)
    return result


def _case(
    name: str,
    a: np.ndarray,
    b: np.ndarray,
    start: np.ndarray | None = None,
    *,
    first_step: int = 0,
    num_steps: int = 1,
    first_row: int = 0,
) -> Case:
    """Builds a case of (128, 128) `a`, (n, 128) `b` and initial accumulators or None."""
    n = b.shape[0]
    accumulate = start is not None
    # Without accumulation the instruction must ignore whatever the registers hold.
    start = np.full((64, n), np.nan, np.float32) if start is None else start
    words = as_words(models.operand_in_smem(a), models.operand_in_smem(b), models.fragments(start))
    rows = a[first_row : first_row + 64]
    result = _expected(rows, b, start, first_step, num_steps, accumulate)
    problem = Problem(words, 64 * n, (first_step, int(accumulate), first_row))
    types = [next(t for t in TYPES if _FP8[t] == x.dtype) for x in (a, b)]
    kernel = mma_name(n, *types, num_steps)
    expected = models.fragments(result.astype(np.float32))
    return Case(f"wgmma.{name}", kernel, problem, as_bytes(expected))


def _unit_rows(rows: int, dtype) -> np.ndarray:
    """Returns rows of one 1: row r has it at column r mod 128."""
    result = np.zeros((rows, _BLOCK_K), np.float32)
    result[np.arange(rows), np.arange(rows) % _BLOCK_K] = 1
    return result.astype(dtype)


def _small_integers(rows: int, dtype, seed: int) -> np.ndarray:
    """Returns integers of which every product and sum of products is exact in 13 bits."""
    return np.random.default_rng(seed).integers(-3, 4, (rows, _BLOCK_K)).astype(dtype)


def _layout_cases() -> list[Case]:
    """Every element of a result comes from one element of an operand: a map of the layouts."""
    cases = []
    for n in MMA_WIDTHS:
        a, b = _unit_rows(_ROWS_A, E4M3), _small_integers(n, E4M3, n)
        cases.append(_case(f"n{n}.unit_a", a, b, num_steps=4))
        a, b = _small_integers(_ROWS_A, E4M3, n + 1), _unit_rows(n, E4M3)
        cases.append(_case(f"n{n}.unit_b", a, b, num_steps=4, first_row=64))
    return cases


def _all_codes(rows: int, dtype: np.dtype) -> np.ndarray:
    """Returns rows of 32 codes each, repeated along K, which together hold all 256.

    A NaN or an infinity fills its row of the result, so these have a row to themselves.
    """
    codes = np.arange(256, dtype=np.uint8)
    finite = np.isfinite(codes.view(dtype).astype(np.float32))
    groups = [np.resize(codes[finite], 256), np.resize(codes[~finite], 32)]
    table = np.concatenate(groups).reshape(-1, 32)
    chosen = table[np.arange(rows) % len(table)]
    return np.tile(chosen, (1, _BLOCK_K // 32)).view(dtype)


def _decoding_cases() -> list[Case]:
    """Every code of each type on each side; units on the other side select one k each."""
    cases = []
    for a_type in TYPES:
        for b_type in TYPES:
            a_dtype, b_dtype = _FP8[a_type], _FP8[b_type]
            name = f"codes.{a_type.lower()}_{b_type.lower()}"
            for step in (0, 3):
                units = np.roll(_unit_rows(32, np.float32), 32 * step, axis=1)
                codes = _all_codes(_ROWS_A, a_dtype)
                cases.append(
                    _case(f"{name}.a.step{step}", codes, units.astype(b_dtype), first_step=step)
                )
            units = np.tile(_unit_rows(32, np.float32), (4, 1)).astype(a_dtype)
            cases.append(_case(f"{name}.b", units, _all_codes(32, b_dtype)))
    return cases


def _zeros(dtype=E4M3) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((_ROWS_A, _BLOCK_K), dtype), np.zeros((32, _BLOCK_K), dtype)


def _start(values) -> np.ndarray:
    """Returns initial accumulators (64, 32) of which each row has one of `values`."""
    column = np.resize(np.asarray(values, np.float32), 64)
    return np.repeat(column[:, None], 32, axis=1)


def _rounding_cases() -> list[Case]:
    cases = []
    # One product of 2^-9 (e5m2: 2^-14) beside an accumulator of 2^i: where does it vanish?
    powers = [s * 2.0**i * m for i in range(-2, 14) for s in (1, -1) for m in (1.0, 1.75)]
    for dtype, value in ((E4M3, 2.0**-9), (E5M2, 2.0**-14)):
        a, b = _zeros(dtype)
        a[:, 0], b[:, 0] = value, 1.0
        b[16:, 0] = -1.0
        cases.append(_case(f"vanishing.{dtype.name}", a, b, _start(powers)))
    # An accumulator with all 24 bits set: are the lower ones kept, rounded or cut?
    a, b = _zeros()
    full = [s * (2.0 - 2.0**-23) * 2.0**i for i in range(-8, 8) for s in (1, -1)]
    cases.append(_case("long_accumulator", a, b, _start(full)))
    # 31 small products beside a large one: cut one by one, or summed first?
    a, b = _zeros()
    a[:, :32], b[:, :32] = 2.0**-6, 2.0**-6
    a[:, 0], b[:, 0] = 448.0, np.resize([1.0, -1.0, 2.0, 448.0], 32)
    a[1::2, 1:32] = -(2.0**-6)
    cases.append(_case("many_small", a, b))
    # Large products that cancel and leave small ones.
    a, b = _zeros()
    a[:, :32], b[:, :32] = 2.0**-3, 2.0**-3
    a[:, 0], a[:, 1], b[:, 0], b[:, 1] = 256.0, -256.0, 1.0, 1.0
    cases.append(_case("cancellation", a, b))
    # The exponent of a product is the sum of the operands', not its own: 1.75 * 1.75 > 2.
    a, b = _zeros()
    a[:, 0], b[:, 0] = 1.75, 1.75
    a[:, 1:32] = np.exp2(-np.arange(31) % 10.0)
    b[:, 1:32] = 2.0**-6
    cases.append(_case("product_exponent", a, b))
    # Subnormal operands count as having the least exponent.
    a, b = _zeros()
    a[:, :32] = (np.arange(1, 33) % 7 + 1) * 2.0**-9
    b[:, :32] = np.resize(2.0 ** np.arange(-9, 9), 32)[:, None]
    cases.append(_case("subnormal_operands", a, b))
    # A zero operand beside a huge one: is there an exponent of a zero product?
    a, b = _zeros(E5M2)
    a[:, :32], b[:, 0] = 57344.0, 0.0
    a[:, 1], b[:, 1] = 2.0**-16, 1.0
    cases.append(_case("zero_times_large", a, b))
    cases.append(_case("negative_zero", *_zeros(), _start([0.0, -0.0])))
    return cases


def _special_cases() -> list[Case]:
    a, b = _zeros(E5M2)
    a[:, :32], b[:, :32] = 1.0, 1.0
    a[:, 0] = np.resize([np.inf, -np.inf, np.nan, 1.0], _ROWS_A)
    b[:, 1] = np.resize([1.0, np.inf, -np.inf, np.nan, 0.0], 32)
    infinite = _case("non_finite.e5m2", a, b)
    a, b = _zeros()
    a[:, 0], b[:, 0] = np.resize([np.nan, 1.0], _ROWS_A), 1.0
    nan = _case("non_finite.e4m3", a, b, _start([1.0, 2.0, np.inf, -np.inf, np.nan]))
    return [infinite, nan]


def _random_cases() -> list[Case]:
    cases = []
    for a_type in TYPES:
        for b_type in TYPES:
            rng = np.random.default_rng(len(cases))
            a = rng.standard_normal((_ROWS_A, _BLOCK_K)).astype(_FP8[a_type])
            b = (4 * rng.standard_normal((32, _BLOCK_K))).astype(_FP8[b_type])
            start = (8 * rng.standard_normal((64, 32))).astype(np.float32)
            name = f"random.{a_type.lower()}_{b_type.lower()}"
            cases.append(_case(name, a, b, start, first_step=2, first_row=64))
    for n in (16, 112, 256):
        rng = np.random.default_rng(n)
        a = (100 * rng.standard_normal((_ROWS_A, _BLOCK_K))).clip(-448, 448).astype(E4M3)
        b = (100 * rng.standard_normal((n, _BLOCK_K))).clip(-448, 448).astype(E4M3)
        cases.append(_case(f"random.block.n{n}", a, b, num_steps=4))
        positive = np.abs(a.astype(np.float32)).astype(E4M3)
        other = np.abs(b.astype(np.float32)).astype(E4M3)
        cases.append(_case(f"random.positive.n{n}", positive, other, num_steps=4))
    return cases


def cases() -> list[Case]:
    """Returns all cases of this file."""
    return [
        *_layout_cases(),
        *_decoding_cases(),
        *_rounding_cases(),
        *_special_cases(),
        *_random_cases(),
    ]
