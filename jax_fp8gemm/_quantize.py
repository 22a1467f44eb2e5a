# SPDX-License-Identifier: Apache-2.0
"""quantize: from floating point to float8 with one scale per block."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jax_fp8gemm import _checks, _distribute, _sharding
from jax_fp8gemm._block_scaled import BlockScaled

SCALE_FORMATS = ("float32", "pow2")


def quantize(
    x: jax.Array,
    block: tuple[int, int] = (1, 128),
    *,
    dtype: Any = jnp.float8_e4m3fn,
    scale_format: str = "float32",
    implementation: str | None = None,
) -> BlockScaled:
    """Quantises an array to float8 with one float32 scale per block of its last two dimensions.

    With `amax` the largest magnitude in a block::

        scale  = amax / finfo(dtype).max      (1 where amax is 0)
        values = round_to_nearest_even(x / scale)

    Partial blocks at the edges are allowed. A finite block stays finite: where `amax / max`
    would be subnormal, the scale is the smallest normal float32. NaN and Inf are never hidden:
    a block that holds one dequantises to NaN and Inf, and no other block is touched.

    XLA fuses this into what produces `x`; there is no kernel for it, so that every
    `implementation` gives the same computation.

    Args:
        x: `(..., R, K)`, `bfloat16`, `float16` or `float32`.
        block: `(1, 128)` for activations and gradients, `(128, 128)` for weights.
        dtype: `float8_e4m3fn` or `float8_e5m2`.
        scale_format: "float32", or "pow2" to round each scale up to a power of two, as UE8M0
            scales are.
        implementation: None, "cuda", "xla" or "sim", as for `gemm`.

    Returns:
        `BlockScaled` with values of shape `(..., R, K)` and scales of shape
        `(..., ceil(R / block[0]), ceil(K / block[1]))`.

    Raises:
        TypeError: `x` or `dtype` has an unsupported dtype, or `block` or `implementation`
            another type.
        ValueError: `x` has less than two dimensions, or `block`, `scale_format` or
            `implementation` is none of the above, or an explicit mesh divides `x` inside a block.

    Transformations:
        `jit`, `vmap`, `scan`, `shard_map`: yes. Sharding: values and scales are divided as `x`
        is, without communication. `grad`: as JAX differentiates a division and a conversion,
        which is of no use in training; wrap what uses it in `jax.custom_vjp`.

    Example:
        >>> activations = quantize(x)                      # (M, K), scales (M, ceil(K / 128))
        >>> weight = quantize(w, block=(128, 128))         # scales (ceil(N / 128), ceil(K / 128))
        >>> y = gemm(activations, weight)                  # (M, N) bfloat16
    """
    where = "quantize"
    _checks.array(where, "x", x, _checks.RESULT_DTYPES)
    _checks.at_least_2d(where, "x", x)
    block = _checks.block(where, block)
    dtype = _checks.dtype_of(where, "dtype", dtype, _checks.FP8_DTYPES)
    _checks.one_of(where, "scale_format", scale_format, SCALE_FORMATS)
    _checks.implementation(where, implementation)
    return _quantize(x, block, dtype, scale_format)


@functools.partial(jax.jit, static_argnums=(1, 2, 3), inline=True)
def _quantize(x: jax.Array, block, dtype, scale_format: str) -> BlockScaled:
    leads = _sharding.names("b", x.ndim - 2)
    rows = "r/128" if block[0] > 1 else "r"
    operation = _sharding.Operation(
        where="quantize",
        layout=_sharding.Layout(
            operands=((*leads, "r", "k"),),
            results=((*leads, "r", "k"), (*leads, rows, "k/128")),
            names=("x",),
        ),
        compute=lambda x: on_one_device(x, block, dtype, scale_format),
    )
    out = _distribute.apply(operation, (x,), automatic=False)
    return BlockScaled.tree_unflatten(block, out)


def quantize_in_rule(
    x: jax.Array, block: tuple[int, int], scale_format: str = "float32"
) -> BlockScaled:
    """Returns `quantize` to e4m3 inside a derivative rule.

    There, jax.vmap does not tell jax.shard_map which mesh axes divide the batch; this rule makes
    the batch a leading dimension instead. Differentiating it, for a second derivative, raises
    TypeError.
    """

    @custom_vmap
    def leaves(x):
        out = _quantize(x, block, jnp.dtype(jnp.float8_e4m3fn), scale_format)
        return out.values, out.scales

    @leaves.def_vmap
    def lead(axis_size, in_batched, x):
        out = quantize_in_rule(x, block, scale_format)
        return (out.values, out.scales), (True, True)

    guarded = jax.custom_jvp(leaves)

    @guarded.defjvp
    def refuse(primals, tangents):
        raise TypeError("gradients of FP8 products are not differentiable: no second derivatives.")

    return BlockScaled.tree_unflatten(block, guarded(x))


def on_one_device(x: jax.Array, block, dtype, scale_format: str) -> tuple[jax.Array, jax.Array]:
    """Returns values and scales of what one device holds; arguments as `quantize`."""
    scales = block_scales(x, block, dtype, scale_format)
    return block_values(x, scales, block, dtype, scale_format), scales


def block_scales(x: jax.Array, block, dtype, scale_format: str) -> jax.Array:
    """Returns the scales; arguments as `quantize`, and blocks of any shape."""
    blocks = _split(x.astype(jnp.float32), block)  # (..., R / r, r, K / c, c)
    scales = _scales(_amax_bits(blocks), float(jnp.finfo(dtype).max))
    return _round_up_to_pow2(scales) if scale_format == "pow2" else scales


def block_values(x: jax.Array, scales: jax.Array, block, dtype, scale_format: str) -> jax.Array:
    """Returns the values that belong to `block_scales`."""
    # The reciprocal, because XLA replaces a division by a broadcast with it wherever it likes.
    scaled = _split(x.astype(jnp.float32), block) * _per_element(1 / scales)
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
    return x.reshape(*lead, -(-rows // r), r, -(-columns // c), c)


def _join(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Undoes `_split`."""
    *lead, row_blocks, r, column_blocks, c = blocks.shape
    whole = blocks.reshape(*lead, row_blocks * r, column_blocks * c)
    return whole[..., : shape[-2], : shape[-1]]


def _per_element(scales: jax.Array) -> jax.Array:
    """Returns scales in a shape that broadcasts over the blocks of `_split`."""
    return scales[..., :, None, :, None]


def _amax_bits(blocks: jax.Array) -> jax.Array:
    """Returns the bit pattern of each block's largest magnitude.

    On integers, because magnitudes order as their bits do with Inf and then NaN at the top, while
    the floating-point maximum of XLA's CPU backend drops NaN and flushes subnormals to zero.
    """
    magnitudes = lax.bitcast_convert_type(blocks, jnp.uint32) & jnp.uint32(0x7FFFFFFF)
    return jnp.max(magnitudes, axis=(-3, -1), initial=0)


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
