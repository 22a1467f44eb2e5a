# SPDX-License-Identifier: Apache-2.0
"""How far blocks of float8 are from what files hold, where that is rounded to them."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from jax_fp8gemm._src.checkpoints import format as fmt

_ROWS, _COLUMNS = fmt.BLOCK


class Rounding(NamedTuple):
    """What was rounded of one or more matrices; nothing to begin with.

    num_blocks, num_values: How many are not exact.
    all_blocks, all_values: How many there are.
    max_relative_error: The largest of a value's error by the value; 1 where one became 0.
    """

    num_blocks: int = 0
    all_blocks: int = 0
    num_values: int = 0
    all_values: int = 0
    max_relative_error: float = 0.0

    def __str__(self) -> str:
        """Returns it for messages."""
        return (
            f"{self.num_values} of {self.all_values} values in {self.num_blocks} of"
            f" {self.all_blocks} blocks, by up to {self.max_relative_error:.3g} of a value"
        )


def measure(
    rows_of: Callable[[slice], np.ndarray], values: np.ndarray, scales: np.ndarray
) -> Rounding:
    """Compares a matrix with blocks of it, as many rows at a time as a block has, for memory.

    Args:
        rows_of: Returns some rows of the matrix, `float64`.
        values: `(N, K)` `float8_e4m3fn`.
        scales: `(ceil(N / 128), ceil(K / 128))` `float32`.
    """
    starts = np.arange(0, values.shape[1], _COLUMNS)
    found = []
    for i, of_row in enumerate(scales.astype(np.float64)):
        rows = slice(i * _ROWS, (i + 1) * _ROWS)
        want = rows_of(rows)
        got = values[rows].astype(np.float64)
        got *= np.repeat(of_row, _COLUMNS)[: got.shape[1]]
        differs = (got != want) & ~(np.isnan(got) & np.isnan(want))
        num_blocks = int(np.logical_or.reduceat(differs.any(axis=0), starts).sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = np.abs((got[differs] - want[differs]) / want[differs])
        largest = float(np.nan_to_num(errors, nan=np.inf).max(initial=0))
        found.append(Rounding(num_blocks, of_row.size, errors.size, got.size, largest))
    return total(found)


def total(roundings: Iterable[Rounding]) -> Rounding:
    """Returns those of several matrices as one."""
    *counts, errors = zip(Rounding(), *roundings, strict=True)
    return Rounding._make([*map(sum, counts), max(errors)])
