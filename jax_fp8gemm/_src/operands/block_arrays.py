# SPDX-License-Identifier: Apache-2.0
"""concatenate and stack: block-scaled arrays joined without another rounding."""

from collections.abc import Sequence

import jax.numpy as jnp

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled


def concatenate(arrays: Sequence[BlockScaled], axis: int = 0) -> BlockScaled:
    """Joins block-scaled arrays along a dimension that they have, such as weights that are fused.

    Exact: the result dequantizes to what the arrays dequantize to, joined.

    Args:
        arrays: At least one `BlockScaled`, alike in dtype, block and, but along `axis`, in shape.
            In a dimension with blocks, each but the last has a whole number of them.
        axis: The dimension.

    Returns:
        `BlockScaled` of the arrays' dtype and block.

    Raises:
        TypeError: `arrays` is not a sequence of `BlockScaled` of one dtype, or `axis` not an int.
        ValueError: `arrays` is empty, their blocks or shapes differ, a block would be cut, or
            `axis` is out of range.

    Transformations:
        Those of `jax.numpy.concatenate`.

    Example:
        >>> gate_up = concatenate([w[:128], w])           # (128 + 160, 256)
        >>> y = gemm(x, gate_up)
    """
    op_name = "concatenate"
    first = _first(op_name, arrays)
    axis = checks.extent(op_name, "axis", axis, -first.ndim, first.ndim - 1) % first.ndim
    unit = (*(1 for _ in first.shape[:-2]), *first.block)[axis]
    for i, array in enumerate(arrays):
        extent = array.shape[axis]
        wanted = (*first.shape[:axis], extent, *first.shape[axis + 1 :])
        if array.shape != wanted:
            raise ValueError(
                f"{op_name}: arrays[{i}] must have the shape of arrays[0] but along axis {axis},"
                f" {wanted}, got {array.shape}."
            )
        if i < len(arrays) - 1 and extent % unit:
            raise ValueError(
                f"{op_name}: arrays[{i}] must have a multiple of {unit}, which is the block, along"
                f" axis {axis}, got {extent}; let it be the last, or dequantize first."
            )
    return _join(jnp.concatenate, arrays, axis)


def stack(arrays: Sequence[BlockScaled], axis: int = 0) -> BlockScaled:
    """Joins block-scaled arrays along a new leading dimension, such as layers or experts.

    Args:
        arrays: At least one `BlockScaled`, alike in dtype, block and shape.
        axis: Where the new dimension is in the result: before the last two.

    Returns:
        `BlockScaled` of the arrays' dtype and block, with one dimension more.

    Raises:
        TypeError: `arrays` is not a sequence of `BlockScaled` of one dtype, or `axis` not an int.
        ValueError: `arrays` is empty, their blocks or shapes differ, or `axis` is not that of a
            leading dimension.

    Transformations:
        Those of `jax.numpy.stack`.

    Example:
        >>> experts = stack([w, 2 * w])                   # (2, 160, 256)
        >>> y = grouped_gemm(x, experts, group_sizes)
    """
    op_name = "stack"
    first = _first(op_name, arrays)
    ndim = first.ndim + 1
    position = checks.extent(op_name, "axis", axis, -ndim, ndim - 1) % ndim
    if position > ndim - 3:
        raise ValueError(
            f"{op_name}: axis must be that of a leading dimension, from 0 to {ndim - 3} or from"
            f" {-ndim} to -3, got {axis}."
        )
    for i, array in enumerate(arrays):
        if array.shape != first.shape:
            raise ValueError(
                f"{op_name}: arrays[{i}] must have the shape of arrays[0], {first.shape}, got"
                f" {array.shape}."
            )
    return _join(jnp.stack, arrays, position)


def _first(op_name: str, arrays: Sequence[BlockScaled]) -> BlockScaled:
    """Returns the first of the arrays, which are alike in dtype, block and number of dimensions."""
    checks.instance(op_name, "arrays", arrays, list | tuple, "a list or tuple of BlockScaled")
    if not arrays:
        raise ValueError(f"{op_name}: arrays must have at least one BlockScaled, got none.")
    for i, array in enumerate(arrays):
        checks.instance(op_name, f"arrays[{i}]", array, BlockScaled, "a BlockScaled")
    first = arrays[0]
    for i, array in enumerate(arrays):
        checks.array(op_name, f"arrays[{i}]", array, (first.dtype,))
        if array.block != first.block or array.ndim != first.ndim:
            raise ValueError(
                f"{op_name}: arrays[{i}] must have block {first.block} and {first.ndim} dimensions,"
                f" as arrays[0], got {array.block} and {array.ndim}."
            )
    return first


def _join(function, arrays: Sequence[BlockScaled], axis: int) -> BlockScaled:
    leaves = (function([getattr(x, name) for x in arrays], axis) for name in ("values", "scales"))
    return BlockScaled.tree_unflatten(arrays[0].block, tuple(leaves))
