# SPDX-License-Identifier: Apache-2.0
"""Quantization in plain JAX: the "xla" implementation, which the kernels equal bit for bit."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jax_fp8gemm._src.tables import BLOCK
from jax_fp8gemm._src.xla import gemm as xla_gemm
from jax_fp8gemm._src.xla import grouped as xla_grouped
from jax_fp8gemm._src.xla.part import Part

_ROW_BLOCK = (1, BLOCK)
_COLUMN_BLOCK = (BLOCK, 1)


def quantize(x: jax.Array, block, dtype, scale_format: str) -> tuple[jax.Array, jax.Array]:
    """Returns values and scales; arguments as those of the public function."""
    scales = block_scales(x, block, dtype, scale_format)
    return block_values(x, scales, block, dtype, scale_format), scales


def valid_rows(x: jax.Array, group_sizes: jax.Array | None) -> jax.Array:
    """Returns x with zeros for rows that are in no group.

    Args:
        x: `(..., R, K)`.
        group_sizes: `(..., G)` with the leading dimensions of x, or None where all are valid.
    """
    if group_sizes is None:
        return x
    count = xla_grouped.num_valid(group_sizes, x.shape[-2])[..., None]
    row = lax.broadcasted_iota(jnp.int32, x.shape[:-1], x.ndim - 2)
    return jnp.where((row < count)[..., None], x, 0)


def quantize_part(
    x: jax.Array, block, dtype, scale_format: str, mesh_axes: tuple[tuple[str, ...], ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns values of one device's part of an array, and scales of all blocks of that array.

    Devices exchange the largest magnitudes of the blocks, and nothing else.

    Args:
        x: The part; parts along a dimension have the same extent.
        block: As in `quantize`.
        dtype: As in `quantize`.
        scale_format: As in `quantize`.
        mesh_axes: Of each of the last two dimensions, mesh axes whose devices have parts of it
            that may begin and end inside a block; none where blocks are whole.
    """
    dims = range(x.ndim - 2, x.ndim)
    parts = [
        (dim, Part(x.shape[dim], extent, axes), axes)
        for dim, extent, axes in zip(dims, block, mesh_axes, strict=True)
    ]
    amax_bits = _magnitude_bits(xla_gemm.as_float32(x))
    for dim, part, _ in sorted(parts, key=lambda each: bool(each[-1])):  # others shrink the most
        amax_bits = part.block_maxima(amax_bits, dim)
    amax_bits = lax.pmax(amax_bits, sum(mesh_axes, ()))
    scales = _scales_of(amax_bits, dtype, scale_format)
    own = scales
    for dim, part, _ in parts:
        own = part.per_element(own, dim)
    return block_values(x, own, (1, 1), dtype, scale_format), scales


def quantize_transposed(
    leaves: tuple, group_sizes: jax.Array | None, dtype, scale_format: str
) -> tuple[jax.Array, jax.Array]:
    """Returns values and scales of a transpose, as it is or in groups.

    Scaled first and transposed as float8. Without the barrier XLA would choose one layout for both
    uses of x, and write the transpose of x in 32 bits for the sake of the values; with it, it reads
    x once for the scales and once for the values.

    Args:
        leaves: `(x,)`, or values and scales of x with block (1, 128), which are then what is read.
        group_sizes: `(..., G)` with the leading dimensions of x, or None.
        dtype: Dtype of the values.
        scale_format: As in `quantize`.
    """
    if group_sizes is not None and group_sizes.ndim > 1:
        single = functools.partial(quantize_transposed, dtype=dtype, scale_format=scale_format)
        return jax.vmap(single)(leaves, group_sizes)
    options = (_COLUMN_BLOCK, dtype, scale_format)
    scales = block_scales(_aligned(_read(leaves), group_sizes), *options)
    again = _read(lax.optimization_barrier(leaves))
    values = block_values(_aligned(again, group_sizes), scales, *options)
    return jnp.swapaxes(values, -1, -2), jnp.swapaxes(scales, -1, -2)


def aligned_blocks(num_rows: int, num_groups: int) -> int:
    """Returns how many blocks of 128 groups of rows can need, each from a new block on."""
    return (num_rows + (BLOCK - 1) * num_groups) // BLOCK


def _read(leaves: tuple) -> jax.Array:
    """Returns the array that the leaves represent."""
    return leaves[0] if len(leaves) == 1 else xla_gemm.dequantize(*leaves, block=_ROW_BLOCK)


def _aligned(x: jax.Array, group_sizes: jax.Array | None) -> jax.Array:
    """Returns the rows with each group, if any, from a multiple of 128 on, and zeros in between."""
    if group_sizes is None:
        return x
    num_rows, num_groups = x.shape[0], len(group_sizes)
    num_blocks = aligned_blocks(num_rows, num_groups)
    if not num_rows or not num_groups:
        return jnp.zeros_like(x, shape=(num_blocks * BLOCK, x.shape[1]))
    ends = xla_grouped.running_ends(group_sizes, num_rows)
    starts = xla_grouped.starts_of(ends)
    block_ends = jnp.cumsum(-(-(ends - starts) // BLOCK))
    block = jnp.arange(num_blocks, dtype=jnp.int32)
    group = xla_grouped.group_of(block_ends, block)
    group = jnp.minimum(group, num_groups - 1)  # of blocks past the last group, which are empty
    first = starts[group] + (block - xla_grouped.starts_of(block_ends)[group]) * BLOCK
    source = first[:, None] + jnp.arange(BLOCK, dtype=jnp.int32)[None]
    is_inside = (source < ends[group][:, None]).reshape(-1, 1)
    return jnp.where(is_inside, jnp.take(x, source.reshape(-1), axis=0, mode="clip"), 0)


def block_scales(x: jax.Array, block, dtype, scale_format: str) -> jax.Array:
    """Returns the scales; blocks may have any shape."""
    blocks = _split(xla_gemm.as_float32(x), block)  # (..., R / r, r, K / c, c)
    amax_bits = jnp.max(_magnitude_bits(blocks), axis=(-3, -1), initial=0)
    return _scales_of(amax_bits, dtype, scale_format)


def block_values(x: jax.Array, scales: jax.Array, block, dtype, scale_format: str) -> jax.Array:
    """Returns the values that belong to `block_scales`."""
    # The reciprocal, because XLA replaces a division by a broadcast with it wherever it likes.
    scaled = _split(xla_gemm.as_float32(x), block) * _per_element(1 / scales)
    if scale_format == "pow2":
        limits = _per_element(_limits(scales, dtype))
        scaled = jnp.clip(scaled, -limits, limits)
    return _join(scaled.astype(dtype), x.shape)


def _split(x: jax.Array, block: tuple[int, int]) -> jax.Array:
    """Returns x cut into blocks, the last ones filled up with zeros."""
    *lead, rows, columns = x.shape
    r, c = block
    pad = [(0, 0)] * len(lead) + [(0, -rows % r), (0, -columns % c)]
    x = jnp.pad(x, pad) if any(after for _, after in pad) else x
    # One dimension at a time, or types lose track of how an explicit mesh shards x.
    x = x.reshape(*x.shape[:-1], -(-columns // c), c)
    return x.reshape(*lead, -(-rows // r), r, *x.shape[-2:])


def _join(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Undoes `_split`."""
    *lead, row_blocks, r, column_blocks, c = blocks.shape
    whole = blocks.reshape(*lead, row_blocks * r, column_blocks, c)
    whole = whole.reshape(*whole.shape[:-2], column_blocks * c)
    return whole[..., : shape[-2], : shape[-1]]


def _per_element(scales: jax.Array) -> jax.Array:
    """Returns scales in a shape that broadcasts over the blocks of `_split`."""
    return scales[..., :, None, :, None]


def _magnitude_bits(x: jax.Array) -> jax.Array:
    """Returns the bit patterns of magnitudes, for finding the largest of them.

    As integers, magnitudes order as they do with Inf and then NaN at the top, while the
    floating-point maximum of XLA's CPU backend drops NaN and flushes subnormals to zero.
    """
    return lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0x7FFFFFFF)


def _scales_of(amax_bits: jax.Array, dtype, scale_format: str) -> jax.Array:
    """Returns the scales of blocks with these largest magnitudes."""
    scales = _scales(amax_bits, float(jnp.finfo(dtype).max))
    return _round_up_to_pow2(scales) if scale_format == "pow2" else scales


def _scales(amax_bits: jax.Array, largest: float) -> jax.Array:
    """Returns amax / largest, correctly rounded and at least the smallest normal number.

    The divisor is a select and not the constant that it amounts to: XLA multiplies by the inexact
    reciprocal of a constant, which moves scales by an ulp and, rounded up, by a power of two.
    """
    is_zero = amax_bits == 0
    one = jnp.float32(1)
    amax = jnp.where(is_zero, one, lax.bitcast_convert_type(amax_bits, jnp.float32))
    scales = amax / jnp.where(is_zero, one, jnp.float32(largest))
    return jnp.maximum(scales, jnp.finfo(jnp.float32).tiny)


def _round_up_to_pow2(scales: jax.Array) -> jax.Array:
    """Returns the least power of two >= each positive normal scale; others unchanged."""
    bits = lax.bitcast_convert_type(scales, jnp.uint32)
    up = (bits + jnp.uint32(0x007FFFFF)) & jnp.uint32(0xFF800000)
    return jnp.where(jnp.isfinite(scales), lax.bitcast_convert_type(up, jnp.float32), scales)


def _limits(scales: jax.Array, dtype) -> jax.Array:
    """Returns the largest value whose product with a power-of-two scale is finite.

    Rounded up, the scale of a block near the end of float32's range can be so large that its
    largest values would round up to 2^128.
    """
    info = jnp.finfo(dtype)
    exponent = math.floor(math.log2(float(info.max)))
    below = 2.0**exponent * (1 - float(info.eps) / 2)  # the last float8 before 2^exponent
    is_top = scales >= jnp.float32(2.0 ** (128 - exponent))
    return jnp.where(is_top, jnp.float32(below), jnp.float32(info.max))
