# SPDX-License-Identifier: Apache-2.0
"""What DeepGEMM's authors and users published, as problems of this package. Pure data, no JAX.

All times are of H800 or H100 SXM: 132 SMs, 3.35 TB/s. The tiles are what DeepGEMM's planner chooses
by its sources; which it chose on the day of a measurement is not published, except for weight
gradients. Where this package has no such tile the nearest stands for it.
"""

from typing import NamedTuple

from benchmarks.cases import suite
from jax_fp8gemm._problem import Problem


class Row(NamedTuple):
    """One published number.

    Attributes:
        problem: What was computed.
        tflops: Published.
        source: Of the number.
        family: Of the table it stands in.
        tile: DeepGEMM's: rows, columns, CTAs of a cluster along M and along N.
    """

    problem: Problem
    tflops: float
    source: str
    family: str
    tile: tuple[int, int, int, int]

    @property
    def microseconds(self) -> float:
        """The published time."""
        return self.problem.flops / self.tflops / 1e6


# Numbers of a cold L2 cache on H100 or H800; GH200's of pull request 68 have faster memory.
_COLD_SOURCES = ("pr94", "pr168")
# Of few rows, DeepGEMM's README has times with a warm cache.
_FEW_ROWS = 128
# Tiles: rows, columns, CTAs of a cluster along M and along N.
_LARGE_TILE = (256, 128, 1, 2)
_DENSE_TILES = {
    (64, 2112): (64, 16, 1, 1),
    (64, 4096): (64, 32, 1, 1),
    (64, 7168): (64, 64, 1, 1),
    (64, 24576): (64, 96, 1, 1),
    (64, 32768): (64, 128, 1, 1),
    (128, 2112): (64, 32, 1, 1),
    (128, 4096): (64, 64, 1, 1),
    (128, 7168): (64, 112, 1, 1),
    (128, 24576): (128, 192, 1, 1),
    (128, 32768): (128, 128, 1, 1),
    (4096, 2112): (128, 192, 2, 1),
}
_CONTIGUOUS_TILE = (128, 160, 1, 1)
_MASKED_TILE = (128, 128, 1, 1)
# DeepGEMM's is 128x152.
_WEIGHT_GRADIENT_TILE = (128, 144, 2, 1)
# README of 25 March 2025: groups, rows of each, N, K: TFLOPS.
_CONTIGUOUS = {
    (4, 8192, 4096, 7168): 1346,
    (4, 8192, 7168, 2048): 1214,
    (8, 4096, 4096, 7168): 1346,
    (8, 4096, 7168, 2048): 1214,
}
# README of 25 February 2025; the cache was partly warm.
_MASKED = {
    (1, 1024, 4096, 7168): 1233,
    (1, 1024, 7168, 2048): 925,
    (2, 512, 4096, 7168): 1040,
    (2, 512, 7168, 2048): 916,
    (4, 256, 4096, 7168): 932,
    (4, 256, 7168, 2048): 815,
}
# Pull request 95: groups, M, N, K of each: TFLOPS.
_K_GROUPED = {
    (4, 7168, 4096, 4096): 939,
    (4, 2048, 7168, 4096): 900,
    (4, 7168, 4096, 8192): 1044,
    (4, 2048, 7168, 8192): 1033,
    (8, 7168, 4096, 4096): 942,
}


def _dense() -> list[Row]:
    rows = []
    for case in suite("deepgemm"):
        numbers = dict(case.published)
        if case.m <= _FEW_ROWS:
            numbers = {name: numbers[name] for name in _COLD_SOURCES if name in numbers}
        source = max(numbers, key=numbers.__getitem__)
        tile = _DENSE_TILES.get((case.m, case.n), _LARGE_TILE)
        family = "dense, few rows" if case.m <= _FEW_ROWS else "dense"
        rows.append(Row(Problem(case.m, case.n, case.k), numbers[source], source, family, tile))
    return rows


def _contiguous() -> list[Row]:
    return [
        Row(
            Problem(groups * m, n, k, "contiguous", num_groups=groups),
            tflops,
            "readme",
            "contiguous",
            _CONTIGUOUS_TILE,
        )
        for (groups, m, n, k), tflops in _CONTIGUOUS.items()
    ]


def _masked() -> list[Row]:
    return [
        Row(
            Problem(m, n, k, "masked", num_groups=groups, expected_m=m),
            tflops,
            "readme, warm",
            "masked",
            _MASKED_TILE,
        )
        for (groups, m, n, k), tflops in _MASKED.items()
    ]


def _weight_gradients() -> list[Row]:
    fields = {"scaling": "1d1d", "d_dtype": "float32", "accumulate": True}
    dense = [
        (Problem(case.m, case.n, case.k, **fields), dict(case.published)["pr95"])
        for case in suite("wgrad")
    ]
    grouped = [
        (Problem(m, n, groups * k, "k_grouped", num_groups=groups, **fields), tflops)
        for (groups, m, n, k), tflops in _K_GROUPED.items()
    ]
    return [
        Row(problem, tflops, "pr95", "weight gradient", _WEIGHT_GRADIENT_TILE)
        for problem, tflops in dense + grouped
    ]


def rows() -> list[Row]:
    """Returns every published row."""
    return _dense() + _contiguous() + _masked() + _weight_gradients()
