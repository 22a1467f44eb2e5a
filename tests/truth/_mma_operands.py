# SPDX-License-Identifier: Apache-2.0
"""Operands of one wgmma that are hard to sum: what tells one model of its arithmetic from another.

The same in every Python: the generator of `random` is specified, NumPy's need not stay.
"""

import random
from collections.abc import Callable, Iterator

import numpy as np

ROWS, COLUMNS, DEPTH = 64, 16, 32
TYPES = ("e4m3", "e5m2")  # in the order of Fp8Type
_FRACTION_BITS = {"e4m3": 3, "e5m2": 2}
# The largest finite code.
_LARGEST = {"e4m3": 0x7E, "e5m2": 0x7B}
_SPECIAL = {"e4m3": (0x7F, 0xFF), "e5m2": (0x7C, 0xFC, 0x7D, 0x7F, 0xFF)}

Codes = np.ndarray  # uint8, (ROWS or COLUMNS, DEPTH)


def _pick(generator: random.Random, rows: int, choices: list[int]) -> Codes:
    drawn = generator.choices(choices, k=rows * DEPTH)
    return np.array(drawn, np.uint8).reshape(rows, DEPTH)


def _magnitudes(generator, rows, magnitudes) -> Codes:
    return _pick(generator, rows, [*magnitudes, *(128 + m for m in magnitudes)])


def _finite(generator, rows, type):
    return _magnitudes(generator, rows, range(_LARGEST[type] + 1))


def _near_one(generator, rows, type):
    one = ((1 << (7 - _FRACTION_BITS[type] - 1)) - 1) << _FRACTION_BITS[type]
    return _magnitudes(generator, rows, range(one - 6, one + 7))


def _subnormal(generator, rows, type):
    return _magnitudes(generator, rows, range(1 << _FRACTION_BITS[type]))


def _spread(generator, rows, type):
    """The largest and the smallest, and little between."""
    top = _LARGEST[type]
    return _magnitudes(generator, rows, [0, 1, 2, 3, 5, top // 3, top // 2, top - 1, top])


def _sparse(generator, rows, type):
    codes = _finite(generator, rows, type)
    return np.where(_pick(generator, rows, [0] * 9 + [1]) == 1, codes, 0).astype(np.uint8)


def _canceling(generator, rows, type):
    """The second half has the first half's magnitudes, with other signs or one step away."""
    half = _finite(generator, rows, type)[:, : DEPTH // 2]
    steps = _pick(generator, rows, [128, 128, 128, 0, 129])[:, : DEPTH // 2]
    other = np.where((half & 127) > 1, half ^ steps, half ^ 128)
    other = np.where((other & 127) > _LARGEST[type], half, other)
    return np.concatenate([half, other], axis=1).astype(np.uint8)


def _special(generator, rows, type):
    """Few rows have an infinity or a NaN."""
    codes = _finite(generator, rows, type)
    for row in range(0, rows, 5):
        for _ in range(generator.choice([1, 1, 2])):
            codes[row, generator.randrange(DEPTH)] = generator.choice(_SPECIAL[type])
    return codes


_OPERANDS: dict[str, tuple[Callable, Callable]] = {
    "finite": (_finite, _finite),
    "near_one": (_near_one, _near_one),
    "subnormal": (_subnormal, _subnormal),
    "subnormal_times_finite": (_subnormal, _finite),
    "spread": (_spread, _spread),
    "sparse": (_sparse, _sparse),
    "canceling": (_canceling, lambda g, rows, type: np.tile(_finite(g, rows, type)[:, :16], 2)),
    "special": (_special, _special),
}


def _power(generator: random.Random, low: int, high: int) -> float:
    return generator.choice([-1, 1]) * generator.uniform(1, 2) * 2.0 ** generator.randint(low, high)


_ACCUMULATORS: dict[str, Callable[[random.Random], float]] = {
    "zero": lambda generator: generator.choice([0.0, -0.0]),
    "like_products": lambda generator: _power(generator, -14, 18),
    "larger": lambda generator: _power(generator, 18, 126),
    "smaller": lambda generator: _power(generator, -126, -14),
    "tiny": lambda generator: generator.choice([-1, 1]) * 2.0 ** generator.randint(-149, -120),
    "special": lambda generator: generator.choice([1.0, -0.0, np.inf, -np.inf, np.nan]),
}


def _accumulators(generator, name) -> np.ndarray:
    drawn = [_ACCUMULATORS[name](generator) for _ in range(ROWS * COLUMNS)]
    return np.array(drawn, np.float32).reshape(ROWS, COLUMNS)


def cases(a_type: str, b_type: str) -> Iterator[tuple[str, Codes, Codes, np.ndarray]]:
    """Yields a name, codes of both operands, and the accumulator, for every case."""
    for operands, (make_a, make_b) in _OPERANDS.items():
        for accumulators in _ACCUMULATORS:
            name = f"{operands}, {accumulators}, {a_type} x {b_type}"
            generator = random.Random(name)
            a, b = make_a(generator, ROWS, a_type), make_b(generator, COLUMNS, b_type)
            yield name, a, b, _accumulators(generator, accumulators)
