# SPDX-License-Identifier: Apache-2.0
"""What DeepGEMM's authors and users published, as problems of this package. Pure data, no JAX.

All times are of H800 or H100 SXM: 132 SMs, 3.35 TB/s. The tiles are what DeepGEMM's heuristics
choose by its sources; which they chose on the day of a measurement is not published, except for
weight gradients. Where this package has no such tile the nearest stands for it.
"""

from typing import NamedTuple

from benchmarks.cases import suite
from jax_fp8gemm._src.native.gemm_problem import Problem


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


def _grouped(name: str, family: str, tile: tuple[int, int, int, int]) -> list[Row]:
    rows = []
    for case in suite(name):
        source, tflops = max(case.published, key=lambda number: number[1])
        warm = ", warm" if name == "masked" and source == "readme" else ""
        rows.append(Row(case.problem, tflops, source + warm, family, tile))
    return rows


def rows() -> list[Row]:
    """Returns every published row."""
    return [
        *_dense(),
        *_grouped("contiguous", "contiguous", _CONTIGUOUS_TILE),
        *_grouped("masked", "masked", _MASKED_TILE),
        *_grouped("wgrad", "weight gradient", _WEIGHT_GRADIENT_TILE),
        *_grouped("k_grouped", "weight gradient", _WEIGHT_GRADIENT_TILE),
    ]
