# SPDX-License-Identifier: Apache-2.0
"""The "xla" implementation of the grouped products: loops over groups, then over their rows.

A loop touches only what its group holds, so that time follows the sizes on the device, and beside
the result memory holds one dequantized group, however many there are. Steps are of a fixed size
that may reach past a group's end: what lies there is computed and not kept, whatever it holds.
Loops slice and update bits (a copy of the operands on a CPU): of small floating-point types XLA's
CPU backend would convert the whole array.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_fp8gemm._src.tables import BLOCK
from jax_fp8gemm._src.xla import gemm as xla_gemm

_SQUARE = (128, 128)
_MIN_STEP, _MAX_STEP = 8, 512  # rows that one step multiplies
_MAX_STEP_BLOCKS = 16  # K blocks that one step of a K-grouped product multiplies
_MIN_SUM_STEP, _MAX_SUM_STEP = 128, 1024  # rows that one step of a weight gradient sums over


class Segments(NamedTuple):
    """Rows that share a weight: rows `[starts[s], ends[s])` are multiplied by `weights[s]`."""

    starts: jax.Array
    ends: jax.Array
    weights: jax.Array


def running_ends(sizes: jax.Array, limit: int) -> jax.Array:
    """Returns where each group ends, one after the other within `limit`, whatever the sizes.

    A negative size counts as 0, and what passes the limit is cut off. In uint32, where the sum of
    two extents cannot overflow.
    """
    sizes = jnp.clip(sizes, 0, limit).astype(jnp.uint32)
    limit = jnp.uint32(limit)
    return lax.associative_scan(lambda x, y: jnp.minimum(x + y, limit), sizes).astype(jnp.int32)


def num_valid(group_sizes: jax.Array, num_rows: int) -> jax.Array:
    """Returns how many rows are in groups, of each of the leading dimensions of the sizes."""
    return jnp.max(running_ends(jnp.moveaxis(group_sizes, -1, 0), num_rows), 0, initial=0)


def starts_of(ends: jax.Array) -> jax.Array:
    """Returns where each group starts, from where each ends."""
    return jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])


def ragged_segments(group_sizes: jax.Array, num_rows: int) -> Segments:
    """Returns groups of the given sizes back to back."""
    ends = running_ends(group_sizes, num_rows)
    return Segments(starts_of(ends), ends, jnp.arange(len(ends), dtype=jnp.int32))


def group_of(ends: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns the group of each position, counting ends at or before it; that of none at last.

    By comparing with every end: a search would be a loop of small kernels.
    """
    return jnp.searchsorted(ends, positions, side="right", method="compare_all").astype(jnp.int32)


def masked_segments(masked_m: jax.Array, max_rows: int) -> Segments:
    """Returns the valid rows of groups padded to `max_rows` rows each."""
    groups = jnp.arange(len(masked_m), dtype=jnp.int32)
    starts = groups * max_rows
    return Segments(starts, starts + jnp.clip(masked_m, 0, max_rows), groups)


def contiguous_segments(group_ids: jax.Array, num_groups: int, alignment: int) -> Segments:
    """Returns one segment per `alignment` rows, of the group that its first row names."""
    ids = group_ids[::alignment]
    starts = jnp.arange(len(ids), dtype=jnp.int32) * alignment
    ends = jnp.minimum(starts + alignment, len(group_ids))
    has_group = (ids >= 0) & (ids < num_groups)
    return Segments(starts, jnp.where(has_group, ends, starts), jnp.clip(ids, 0, num_groups - 1))


def _step_size(extent: int, parts: int, least: int, most: int) -> int:
    """Returns the power of two, from `least` to `most`, next above the mean extent of a part."""
    mean = -(-extent // parts)
    return min(max(1 << (mean - 1).bit_length(), least), most)


def _ceil_div(x: jax.Array, y: int) -> jax.Array:
    return (x + (y - 1)) // y


def _bits(x: jax.Array) -> jax.Array:
    """Returns the bit patterns of x."""
    return xla_gemm.bit_cast(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))


def _product(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    return lax.dot_general(
        lhs,
        rhs,
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _for_each_not_empty(starts: jax.Array, ends: jax.Array, body, init: jax.Array) -> jax.Array:
    """Folds `body(index, start, end, carry)` over the intervals that are not empty."""
    order = jnp.argsort(ends <= starts, stable=True)

    def step(i, carry):
        index = order[i]
        return body(index, starts[index], ends[index], carry)

    return lax.fori_loop(0, jnp.sum(ends > starts), step, init)


def grouped_rows(
    lhs_values: jax.Array,
    lhs_scales: jax.Array,
    rhs_values: jax.Array,
    rhs_scales: jax.Array,
    *,
    segments: Segments,
    dtype: Any,
) -> jax.Array:
    """Returns `(T, N)`: each segment's rows times its weight, and zeros in all other rows.

    Args:
        lhs_values: `(T, K)`, T at least 1.
        lhs_scales: `(T, ceil(K / 128))`.
        rhs_values: `(G, N, K)`, G at least 1.
        rhs_scales: `(G, ceil(N / 128), ceil(K / 128))`.
        segments: Disjoint rows within T, in any order.
        dtype: Dtype of the result.
    """
    num_rows, n = lhs_values.shape[0], rhs_values.shape[1]
    lhs_bits, rhs_bits = _bits(lhs_values), _bits(rhs_values)
    step = min(_step_size(num_rows, len(segments.starts), _MIN_STEP, _MAX_STEP), num_rows)

    def multiply(index, start, end, out):
        weight = segments.weights[index]
        values = lax.bitcast_convert_type(rhs_bits[weight], rhs_values.dtype)
        rhs = xla_gemm.dequantize(values, rhs_scales[weight], _SQUARE)

        def rows(i, out):
            first = start + i * step
            begin = jnp.minimum(first, num_rows - step)  # a step never passes the last row
            values = lax.dynamic_slice_in_dim(lhs_bits, begin, step)
            values = lax.bitcast_convert_type(values, lhs_values.dtype)
            scales = lax.dynamic_slice_in_dim(lhs_scales, begin, step)
            product = _product(xla_gemm.dequantize(values, scales, (1, BLOCK)), rhs)
            product = _bits(product.astype(dtype))
            row = begin + jnp.arange(step, dtype=jnp.int32)
            kept = lax.dynamic_slice_in_dim(out, begin, step)
            product = jnp.where(((row >= first) & (row < end))[:, None], product, kept)
            return lax.dynamic_update_slice_in_dim(out, product, begin, 0)

        return lax.fori_loop(0, _ceil_div(end - start, step), rows, out)

    zeros = _bits(lax.full_like(lhs_values, 0, dtype, (num_rows, n)))
    out = _for_each_not_empty(segments.starts, segments.ends, multiply, zeros)
    return lax.bitcast_convert_type(out, dtype)


def k_grouped(
    lhs_values: jax.Array,
    lhs_scales: jax.Array,
    rhs_values: jax.Array,
    rhs_scales: jax.Array,
    group_sizes: jax.Array,
    accumulator: jax.Array | None,
    *,
    preferred_element_type: Any,
) -> jax.Array:
    """Returns `(G, M, N)`: products of the groups' columns, added to the accumulator.

    Groups are whole blocks of 128 columns, as they are for the kernels. No extent is 0.
    """
    num_groups, num_blocks = len(group_sizes), lhs_scales.shape[1]
    (m, num_columns), n = lhs_values.shape, rhs_values.shape[0]
    # From the clipped size, which cannot overflow when it is rounded up.
    block_sizes = _ceil_div(jnp.clip(group_sizes, 0, num_columns), BLOCK)
    ends = running_ends(block_sizes, num_blocks)
    step = min(_step_size(num_blocks, num_groups, 1, _MAX_STEP_BLOCKS), num_blocks)
    missing = num_blocks * BLOCK - num_columns

    def bits(values):
        return jnp.pad(_bits(values), ((0, 0), (0, missing))) if missing else _bits(values)

    lhs, rhs = (bits(lhs_values), lhs_scales), (bits(rhs_values), rhs_scales)

    def multiply(group, start, end, out):
        def blocks(i, total):
            first = start + i * step
            begin = jnp.minimum(first, num_blocks - step)
            column = begin * BLOCK + jnp.arange(step * BLOCK, dtype=jnp.int32)
            inside = (column >= first * BLOCK) & (column < end * BLOCK)

            def columns(bits, scales, dtype):
                bits = lax.dynamic_slice_in_dim(bits, begin * BLOCK, step * BLOCK, 1)
                scales = lax.dynamic_slice_in_dim(scales, begin, step, 1)
                values = lax.bitcast_convert_type(bits, dtype)
                return jnp.where(inside[None], xla_gemm.dequantize(values, scales, (1, BLOCK)), 0)

            return total + _product(
                columns(*lhs, lhs_values.dtype), columns(*rhs, rhs_values.dtype)
            )

        zeros = lax.full_like(lhs_values, 0, jnp.float32, (m, n))
        total = lax.fori_loop(0, _ceil_div(end - start, step), blocks, zeros)
        if accumulator is not None:
            addend = lax.bitcast_convert_type(out[group], preferred_element_type)
            total = total + addend.astype(jnp.float32)
        total = _bits(total.astype(preferred_element_type))
        return lax.dynamic_update_index_in_dim(out, total, group, 0)

    out = accumulator
    if out is None:
        out = lax.full_like(lhs_values, 0, preferred_element_type, (num_groups, m, n))
    out = _for_each_not_empty(starts_of(ends), ends, multiply, _bits(out))
    return lax.bitcast_convert_type(out, preferred_element_type)


def weight_gradients(
    values: jax.Array,
    scales: jax.Array,
    dy: jax.Array,
    group_sizes: jax.Array,
    accumulator: jax.Array | None,
) -> jax.Array:
    """Returns `(G, K, N)` float32: of each group's rows, x transposed times dy, both in bfloat16.

    One loop, whose length the shapes say, so that no device waits for the host: of as many steps as
    groups can need, each of rows of one group, whose sum it adds to. Steps are no larger than the
    mean group, or 128 rows: they multiply at most twice the rows, or 128 more for each group.
    `lax.ragged_dot_general` multiplies, on a GPU, a masked copy of all rows for each group.

    Args:
        values: `(T, K)` of x.
        scales: `(T, ceil(K / 128))`.
        dy: `(T, N)` in floating point. Rows in no group may be anything, here and in x.
        group_sizes: `(G,)`.
        accumulator: float32, as the result, or None.
    """
    (num_rows, k), n, num_groups = values.shape, dy.shape[1], len(group_sizes)
    if accumulator is None:
        accumulator = lax.full_like(values, 0, jnp.float32, (num_groups, k, n))
    if not num_rows or not num_groups:
        return accumulator
    step = _step_size(-(-num_rows // 2), num_groups, _MIN_SUM_STEP, _MAX_SUM_STEP)
    step = min(step, num_rows)
    ends = running_ends(group_sizes, num_rows)
    starts = starts_of(ends)
    step_ends = jnp.cumsum(_ceil_div(ends - starts, step))
    bits = _bits(values)

    def add(i, sums):
        group = group_of(step_ends, i)
        is_group = group < num_groups
        group = jnp.minimum(group, num_groups - 1)
        first = starts[group] + (i - starts_of(step_ends)[group]) * step
        begin = jnp.minimum(first, num_rows - step)  # a step never passes the last row
        row = begin + jnp.arange(step, dtype=jnp.int32)
        inside = (is_group & (row >= first) & (row < ends[group]))[:, None]
        x = lax.bitcast_convert_type(lax.dynamic_slice_in_dim(bits, begin, step), values.dtype)
        x = xla_gemm.dequantize(x, lax.dynamic_slice_in_dim(scales, begin, step), (1, BLOCK))
        x, y = (
            jnp.where(inside, rows, 0).astype(jnp.bfloat16)
            for rows in (x, lax.dynamic_slice_in_dim(dy, begin, step))
        )
        product = jnp.einsum("tk,tn->kn", x, y, preferred_element_type=jnp.float32)
        return lax.dynamic_update_index_in_dim(sums, sums[group] + product, group, 0)

    num_steps = (num_rows + (step - 1) * num_groups) // step
    return lax.fori_loop(0, num_steps, add, accumulator)
