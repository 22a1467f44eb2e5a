# SPDX-License-Identifier: Apache-2.0
"""Indices of block-scaled arrays: the parts of values and scales that are one array again."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

_NAME = "BlockScaled"


def of_leaves(shape: Sequence[int], block: tuple[int, int], index: Any) -> tuple[tuple, tuple]:
    """Returns the index of the values and that of the scales.

    Where a block has extent 1, an index means the same for both; elsewhere it must be a slice that
    leaves blocks whole. What has no blocks comes first, so that no index can change their order.

    Args:
        shape: Of the values.
        block: Of the array.
        index: What is in the brackets: an entry, or a tuple of them.

    Raises:
        TypeError: An entry is no index.
        IndexError: An integer is out of range, or there are too many entries or too few dimensions
            left.
        ValueError: An entry would cut or move a block.
    """
    units = (*(1 for _ in shape[:-2]), *block)
    of_values: list[Any] = []
    of_scales: list[Any] = []
    dim = 0
    every = _entries(shape, index)
    for entry in every:
        both: tuple[Any, Any] = (entry, entry)
        if entry is None:
            if any(unit > 1 for unit in units[:dim]):
                raise ValueError(
                    f"{_NAME}: a new dimension must come before those with blocks of {block}, got"
                    f" it behind dimension {dim - 1}."
                )
        else:
            if units[dim] > 1:
                both = _whole_blocks(dim, shape[dim], units[dim], entry)
            else:
                _check_in_range(dim, shape[dim], entry)
            dim += 1
        of_values.append(both[0])
        of_scales.append(both[1])
    if sum(e is None or isinstance(e, slice) or np.ndim(e) > 0 for e in every) < 2:
        raise IndexError(
            f"{_NAME}: index must leave at least two dimensions of shape {tuple(shape)}, got"
            f" {index!r}; use a slice of one row, or dequantize first."
        )
    return tuple(of_values), tuple(of_scales)


def _entries(shape: Sequence[int], index: Any) -> list[Any]:
    """Returns one entry for each dimension, and None for each new one."""
    every = list(index) if isinstance(index, tuple) else [index]
    for entry in every:
        if not _is_entry(entry):
            raise TypeError(
                f"{_NAME}: index must have integers, slices, integer arrays, None and ..., got"
                f" {entry!r}."
            )
    count = sum(entry is not None and entry is not Ellipsis for entry in every)
    places = [i for i, entry in enumerate(every) if entry is Ellipsis] or [len(every)]
    if count > len(shape) or len(places) > 1:
        raise IndexError(
            f"{_NAME}: index must have at most {len(shape)} entries, and one ..., for shape"
            f" {tuple(shape)}, got {len(every)}."
        )
    whole = [slice(None)] * (len(shape) - count)
    return [*every[: places[0]], *whole, *every[places[0] + 1 :]]


def _is_entry(entry: Any) -> bool:
    if entry is None or entry is Ellipsis or isinstance(entry, slice):
        return True
    is_integer = hasattr(entry, "dtype") and jnp.issubdtype(entry.dtype, np.integer)
    return is_integer or (isinstance(entry, int) and not isinstance(entry, bool))


def _check_in_range(dim: int, extent: int, entry: Any) -> None:
    """Checks an integer, which JAX would clamp."""
    is_known = isinstance(entry, int | np.integer) and isinstance(extent, int)
    if is_known and not -extent <= entry < extent:
        raise IndexError(
            f"{_NAME}: index of dimension {dim} must be from {-extent} to {extent - 1}, got"
            f" {entry}."
        )


def _whole_blocks(dim: int, extent: int, unit: int, entry: Any) -> tuple[slice, slice]:
    """Returns the slices of elements and of blocks."""
    rule = (
        f"{_NAME}: index of dimension {dim} must be a slice of step 1 from a multiple of {unit},"
        f" which is the block, to another or to the end, {extent}, got {entry!r}; dequantize"
        " first."
    )
    if not isinstance(entry, slice):
        raise ValueError(rule)
    if entry.start is None and entry.stop is None and entry.step is None:
        return entry, entry  # also of a symbolic extent
    start, stop, step = entry.indices(extent)
    stop = max(start, stop)
    if step != 1 or any(end % unit and end != extent for end in (start, stop)):
        raise ValueError(rule)
    return slice(start, stop), slice(-(-start // unit), -(-stop // unit))
