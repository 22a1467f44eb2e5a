# SPDX-License-Identifier: Apache-2.0
"""How files lay out the scales of a matrix, and those of its blocks that say the same."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jax_fp8gemm._src.checkpoints import format as fmt
from jax_fp8gemm._src.operands import checks

_ROWS = fmt.BLOCK[0]


class Layout(NamedTuple):
    """Scales of a matrix of N rows and K columns, after the dimensions that lead both.

    shape: Theirs in a file, of N and K.
    grid: The same numbers as rows and columns, of which N or K, their blocks or 1 each.
    """

    shape: Callable[[int, int], tuple[int, ...]]
    grid: Callable[[int, int], tuple[int, int]]


def _blocks(n: int, k: int) -> tuple[int, int]:
    rows, columns = checks.scales_shape((n, k), fmt.BLOCK)
    return rows, columns


def _blocks_4d(n: int, k: int) -> tuple[int, ...]:
    rows, columns = _blocks(n, k)
    return (rows, 1, columns, 1)


# Where a shape has two of them, they mean the same.
LAYOUTS = {
    "block": Layout(_blocks, _blocks),
    "block_4d": Layout(_blocks_4d, _blocks),
    "tensor": Layout(lambda n, k: (), lambda n, k: (1, 1)),
    "tensor_1d": Layout(lambda n, k: (1,), lambda n, k: (1, 1)),
    "channel": Layout(lambda n, k: (n, 1), lambda n, k: (n, 1)),
    "channel_1d": Layout(lambda n, k: (n,), lambda n, k: (n, 1)),
}


def shape_of(layout: str, values_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that the scales of values of a shape have in a file."""
    *lead, n, k = values_shape
    return (*lead, *LAYOUTS[layout].shape(n, k))


def grid_of(layout: str, scales: np.ndarray, values_shape: tuple[int, ...]) -> np.ndarray:
    """Returns the scales of a file as rows and columns."""
    *lead, n, k = values_shape
    return scales.reshape(*lead, *LAYOUTS[layout].grid(n, k))


def is_exact(layout: str, scales: np.ndarray, values_shape: tuple[int, ...]) -> bool:
    """Whether the scales of a file are those of blocks: one number for all rows of a block."""
    n = values_shape[-2]
    grid = grid_of(layout, scales, values_shape)
    return grid.shape[-2] != n or _same(_of_rows(grid[..., ::_ROWS, :], n), grid)


def to_blocks(layout: str, scales: np.ndarray, values_shape: tuple[int, ...]) -> np.ndarray:
    """Returns the scales of blocks for exact scales of a file, as a view in their dtype."""
    *lead, n, k = values_shape
    grid = grid_of(layout, scales, values_shape)
    if grid.shape[-2] == n:  # a scale for each row, or one row
        grid = grid[..., ::_ROWS, :]
    return np.broadcast_to(grid, (*lead, *_blocks(n, k)))


def from_blocks(
    layout: str, blocks: np.ndarray, values_shape: tuple[int, ...]
) -> np.ndarray | None:
    """Returns the scales of a file that say what those of blocks do, or None where none do."""
    n, k = values_shape[-2:]
    shape = shape_of(layout, values_shape)
    if 0 in blocks.shape:  # nothing to scale
        return np.ones(shape, blocks.dtype)
    rows, columns = LAYOUTS[layout].grid(n, k)
    grid = blocks[..., :columns]
    grid = _of_rows(grid, n) if rows == n else grid[..., :rows, :]
    scales = grid.reshape(shape)
    return scales if _same(to_blocks(layout, scales, values_shape), blocks) else None


def _of_rows(grid: np.ndarray, n: int) -> np.ndarray:
    return np.repeat(grid, _ROWS, axis=-2)[..., :n, :]


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of one dtype have the same bits, which NaN does not disturb."""
    bits = np.dtype(f"u{a.dtype.itemsize}")
    return np.array_equal(np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits))
