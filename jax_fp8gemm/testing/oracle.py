# SPDX-License-Identifier: Apache-2.0
"""Float64 references of every product, computed with NumPy from the dequantized operands.

Each gives `(ref, magnitude, is_padding)`: the result, the same of the operands' magnitudes, and
which elements must be exactly 0. Rows and columns that belong to no group are not looked at.
"""

from typing import Any

import numpy as np

from jax_fp8gemm._src.operands.block_scaled import BlockScaled

Reference = tuple[np.ndarray, np.ndarray, np.ndarray]
GROUPED_KINDS = ("ragged", "contiguous", "masked", "k_grouped")
_BLOCK = 128


def float64(x: BlockScaled) -> np.ndarray:
    """Returns the exact array that `x` represents."""
    rows, columns = x.shape[-2:]
    scales = np.asarray(x.scales).astype(np.float64)
    scales = scales.repeat(x.block[0], axis=-2)[..., :rows, :]
    scales = scales.repeat(x.block[1], axis=-1)[..., :columns]
    return np.asarray(x.values).astype(np.float64) * scales


def dense(lhs: np.ndarray, rhs: np.ndarray) -> Reference:
    """Returns the reference of `lhs @ rhs.T`."""
    with np.errstate(invalid="ignore", over="ignore"):  # non-finite operands are legal
        ref, magnitude = lhs @ rhs.T, np.abs(lhs) @ np.abs(rhs).T
    return ref, magnitude, np.zeros(ref.shape, bool)


def with_accumulator(reference: Reference, accumulator: Any) -> Reference:
    """Returns a reference with an accumulator, or None, added."""
    if accumulator is None:
        return reference
    ref, magnitude, is_padding = reference
    addend = np.asarray(accumulator).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return ref + addend, magnitude + np.abs(addend), is_padding & (addend == 0)


def grouped(kind: str, lhs: np.ndarray, rhs: np.ndarray, groups: np.ndarray) -> Reference:
    """Returns the reference of a grouped product; `groups` are sizes, ids or `masked_m`."""
    if kind == "k_grouped":
        return _k_grouped(lhs, rhs, groups)
    if kind == "masked":
        shape = lhs.shape[:2]
        ids = np.where(np.arange(shape[1]) < groups[:, None], np.arange(shape[0])[:, None], -1)
        parts = _rows(lhs.reshape(-1, lhs.shape[2]), rhs, ids.reshape(-1))
        ref, magnitude, is_padding = (x.reshape(*shape, rhs.shape[1]) for x in parts)
        return ref, magnitude, is_padding
    return _rows(lhs, rhs, row_groups(groups, lhs.shape[0]) if kind == "ragged" else groups)


def row_groups(group_sizes: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns the group of each row of groups back to back, -1 past the last."""
    ends = np.minimum(np.maximum(group_sizes, 0).cumsum(dtype=np.int64), num_rows)
    ids = np.repeat(np.arange(len(group_sizes)), np.diff(ends, prepend=0))
    return np.concatenate([ids, np.full(num_rows - len(ids), -1)])


def _zeros(shape: tuple[int, ...]) -> Reference:
    return np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)


def _rows(lhs: np.ndarray, rhs: np.ndarray, ids: np.ndarray) -> Reference:
    out = _zeros((len(lhs), rhs.shape[1]))
    for group in range(len(rhs)):
        rows = ids == group
        for whole, part in zip(out, dense(lhs[rows], rhs[group]), strict=True):
            whole[rows] = part
    out[2][(ids < 0) | (ids >= len(rhs))] = True
    return out


def _k_grouped(lhs: np.ndarray, rhs: np.ndarray, group_sizes: np.ndarray) -> Reference:
    shape = (len(group_sizes), len(lhs), len(rhs))
    out = _zeros(shape)
    start = 0
    for group, size in enumerate(np.maximum(group_sizes, 0).tolist()):
        columns = slice(start, start + size)
        for whole, part in zip(out, dense(lhs[:, columns], rhs[:, columns]), strict=True):
            whole[group] = part
        out[2][group] = lhs[:, columns].size == 0
        start += -(-size // _BLOCK) * _BLOCK
    return out
