# SPDX-License-Identifier: Apache-2.0
"""stmatrix, the epilogue's layouts, conversions, barriers, registers."""

import conformance_models as models
import ml_dtypes
import numpy as np
from catalogue import EPILOGUES
from problems import Case, Problem, Tensor, as_bytes, as_words

_NUMPY_TYPES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}
_TENSOR_TYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
_ROUND = {"bf16": models.round_to_bfloat16, "f16": models.round_to_float16}


def _stmatrix_cases() -> list[Case]:
    rng = np.random.default_rng(0)
    registers = rng.integers(0, 2**32, (128, 4), np.uint32)
    rows = np.arange(128)
    swizzled = models.swizzle(rows % 16 * 128 + rows // 32 * 2048 + rows % 32 // 16 * 16, 128)
    layouts = {
        "linear": rows * 16,
        "scattered": rng.permutation(512)[:128] * 16,
        "swizzled": swizzled,
    }
    cases = []
    for name, addresses in layouts.items():
        smem = np.full(8192, models.BACKGROUND, np.uint8)
        for warp in range(4):
            lanes = slice(32 * warp, 32 * warp + 32)
            models.stmatrix(smem, addresses[lanes], registers[lanes])
        words = np.concatenate([addresses[:, None].astype(np.uint32), registers], axis=1)
        problem = Problem(as_words(words), 2048)
        cases.append(Case(f"stmatrix.{name}", "stmatrix_x4", problem, as_bytes(smem)))
    return cases


def _epilogue(n: int, d: str) -> Case:
    """A tile of (64, n): load, add, round, write, store."""
    dtype = np.dtype(_NUMPY_TYPES[d])
    rng = np.random.default_rng(n)
    loaded = (8 * rng.standard_normal((64, n))).astype(dtype)
    given = rng.standard_normal((64, n)).astype(np.float32)
    total = given + loaded.astype(np.float32)
    if d == "f32":
        rounded = total
    else:
        rounded = _ROUND[d](total.view(np.uint32)).view(dtype)
    # A swizzle that divides a row; else the box is as wide as the tile.
    spans = (128,) if d == "f32" else (128, 64)
    span = next((s for s in spans if n * dtype.itemsize % s == 0), 0)
    columns = span // dtype.itemsize or n
    boxes = [rounded[:, i : i + columns] for i in range(0, n, columns)]
    smem = np.concatenate([models.box_in_smem(box, span) for box in boxes])
    source = Tensor(loaded, (64, columns), _TENSOR_TYPES[d], span)
    target = Tensor(np.zeros_like(loaded), (64, columns), _TENSOR_TYPES[d], span, is_output=True)
    expected = as_bytes(models.fragments(total), smem, target.memory(rounded))
    words = as_words(models.fragments(given))
    problem = Problem(words, 64 * n + smem.size // 4, (), (source, target))
    return Case(f"epilogue.n{n}.{d}", f"epilogue_n{n}_{d}", problem, expected)


def _float32_words() -> np.ndarray:
    """Ties, both neighbours of ties, subnormals, overflow, infinities and NaNs with payloads."""
    high = np.arange(0, 0x8000, 0x35, dtype=np.uint32)  # sign, exponent and upper fraction
    special = [0, 1, 0x7F, 0x80, 0xFF, 0x7F7F, 0x7F80, 0x7F81, 0x7FC0, 0x7FFF, 0x3F80, 0x3F81]
    special += [0x477F, 0x4780, 0x3880, 0x387F, 0x3300, 0x3301, 0x32FF, 0x3340, 0x3380]
    high = np.concatenate([high, np.asarray(special, np.uint32)])
    low = np.asarray([0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xE000, 0xFFFF])
    bits = (high[:, None] << 16 | low[None, :].astype(np.uint32)).ravel()
    words = np.concatenate([bits, bits | 0x80000000]).astype(np.uint32)
    return words[: words.size // 2 * 2]


def _narrowing_case() -> Case:
    words = _float32_words()
    pairs = words.reshape(-1, 2)
    packed = np.empty_like(pairs)
    for column, name in enumerate(("bf16", "f16")):
        halves = _ROUND[name](pairs).astype(np.uint32)
        packed[:, column] = halves[:, 0] << 16 | halves[:, 1]  # first operand in the high half
    problem = Problem(words, words.size, (words.size,))
    return Case("narrowing", "narrowing", problem, as_bytes(packed))


def _fp8_cases() -> list[Case]:
    """To float8 and from it to half precision; which half a NaN becomes is written nowhere."""
    words = np.concatenate([_float32_words(), np.arange(0x3A000000, 0x44000000, 0x7FFFF)])
    words = np.concatenate([words, words ^ np.uint32(0x80000000)]).astype(np.uint32)
    is_nan = (words & 0x7FFFFFFF) > 0x7F800000
    cases = []
    for name, chosen in (("numbers", words[~is_nan]), ("nans", words[is_nan])):
        pairs = chosen[: chosen.size // 2 * 2].reshape(-1, 2)
        e4m3, e5m2 = (
            models.saturated_fp8(pairs, np.dtype(dtype)).astype(np.uint32)
            for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
        )
        halves = e4m3.astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float16)
        halves = np.where(np.isnan(halves), 0x7FFF, halves.view(np.uint16)).astype(np.uint32)
        packed = np.empty_like(pairs)
        packed[:, 0] = e5m2[:, 0] << 24 | e5m2[:, 1] << 16 | e4m3[:, 0] << 8 | e4m3[:, 1]
        packed[:, 1] = halves[:, 0] << 16 | halves[:, 1]
        problem = Problem(pairs.ravel(), pairs.size, (pairs.size,))
        documented = name == "numbers"
        expected = as_bytes(packed)
        cases.append(Case(f"fp8.{name}", "fp8_conversions", problem, expected, documented))
    return cases


def _widening_cases() -> list[Case]:
    """Every half-precision number; which NaN a NaN becomes is written nowhere."""
    halves = np.arange(0x10000, dtype=np.uint32)
    is_nan = (halves & 0x7FFF) > 0x7C00
    cases = []
    for name, words in (("numbers", halves[~is_nan]), ("nans", halves[is_nan])):
        widened = models.half_to_float32(words.astype(np.uint16))
        problem = Problem(words, words.size, (words.size,))
        documented = name == "numbers"
        cases.append(Case(f"widening.{name}", "widening", problem, as_bytes(widened), documented))
    return cases


def _bounds(exact: np.ndarray, units: int) -> list[np.ndarray]:
    """Returns what lies so many units in the last place below and above, or closer to 0."""
    tiny = np.finfo(np.float32).tiny
    bounds = []
    for direction in (-np.inf, np.inf):
        bound = exact.astype(np.float32)
        for _ in range(units):
            bound = np.nextafter(bound, np.float32(direction))
        flushed = np.where((np.abs(bound) < tiny) & (bound * direction < 0), 0, bound)
        bounds.append(np.where(np.isfinite(exact), flushed, exact).astype(np.float32))
    return bounds


def _approximation_case() -> Case:
    """The documented errors: 2 units of 2^x, 1 of 1 / x; what is subnormal counts as 0."""
    rng = np.random.default_rng(2)
    words = rng.integers(0, 2**32, 2000, np.uint32)
    words = np.concatenate([words, _float32_words()[::7]])
    x = np.concatenate([words.view(np.float32), rng.uniform(-140, 140, 3000).astype(np.float32)])
    counted = np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(0, x), x)
    with np.errstate(all="ignore"):
        power, inverse = np.exp2(counted, dtype=np.float64), 1 / counted.astype(np.float64)
        columns = np.stack([x, *_bounds(power, 2), *_bounds(inverse, 1)], axis=1)
    problem = Problem(as_words(columns), 2 * x.size, (5 * x.size,))
    return Case("approximations", "approximations", problem, as_bytes(np.ones(2 * x.size, "u4")))


def _barrier_cases() -> list[Case]:
    rng = np.random.default_rng(1)
    rounds = 7
    words = rng.integers(0, 2**32, 256, np.uint32)
    received = np.repeat(words[:rounds, None], 96, axis=1)
    phases = Problem(words, received.size, (rounds,))
    turns = np.tile(np.arange(1, rounds + 1, dtype=np.uint32), 2)
    remote = Problem(out_words=turns.size, args=(rounds,), num_ctas=2)
    # Not NaN: a float register may not keep a payload on every machine.
    stored = rng.integers(0, 0x7F800000, (2, 512), np.uint32)
    exchange = [Problem(stored.ravel(), 1024, (first,), num_ctas=2) for first in (0, 1)]
    thread = np.arange(256)
    neighbours = words[thread // 128 * 128 + (thread + 37) % 128]
    named = Problem(words, 512)
    return [
        Case("mbarrier.phases", "mbarrier_phases", phases, as_bytes(received)),
        Case("mbarrier.remote", "mbarrier_remote", remote, as_bytes(turns)),
        Case("named_barriers", "named_barriers", named, as_bytes(neighbours, words[::-1])),
        *(
            Case(f"st_async.{name}", "st_async", problem, as_bytes(stored[::-1]))
            for name, problem in zip(("bytes_first", "announced_first"), exchange, strict=True)
        ),
    ]


def _register_cases() -> list[Case]:
    thread, block = np.arange(128)[None, :], np.arange(4)[:, None]
    fields = [thread, block, 4, thread % 32, thread // 32, block % 2, 1]
    grid = np.stack(np.broadcast_arrays(*fields), axis=-1).astype(np.uint32)
    words = np.random.default_rng(2).integers(0, 2**32, 512, np.uint32)
    # Not NaN: a float register may not keep a payload on every machine.
    words[words & 0x7F800000 == 0x7F800000] = 0x3F800000
    budgets = np.arange(1, 385, dtype=np.uint32)
    return [
        Case(
            "special_registers",
            "special_registers",
            Problem(out_words=grid.size, num_ctas=4),
            as_bytes(grid),
        ),
        Case("shared_vectors", "shared_vectors", Problem(words, 512), as_bytes(words)),
        Case("register_budgets", "register_budgets", Problem(out_words=384), as_bytes(budgets)),
        Case(
            "dependent_launch",
            "dependent_launch",
            Problem(words[:128], 128),
            as_bytes(words[:128]),
        ),
    ]


def cases() -> list[Case]:
    """Returns all cases of this file."""
    return [
        *_stmatrix_cases(),
        *(_epilogue(n, d) for n, d in EPILOGUES),
        _narrowing_case(),
        *_widening_cases(),
        *_fp8_cases(),
        _approximation_case(),
        *_barrier_cases(),
        *_register_cases(),
    ]
