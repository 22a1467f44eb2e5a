# SPDX-License-Identifier: Apache-2.0
"""quantize: from floating point to float8 with one scale per block."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_fp8gemm._src.operands import checks, group_checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled
from jax_fp8gemm._src.ops.activation import Computed, Plain, as_activation
from jax_fp8gemm._src.ops.quantizer import KINDS, validated
from jax_fp8gemm._src.transforms.apply import apply


def quantize(
    x: jax.Array | Computed,
    block: tuple[int, int] = (1, 128),
    *,
    dtype: Any = jnp.float8_e4m3fn,
    scale_format: str = "float32",
    group_sizes: jax.Array | None = None,
    masked_m: jax.Array | None = None,
    implementation: str | None = None,
) -> BlockScaled:
    """Quantizes an array to float8 with one float32 scale per block of its last two dimensions.

    With `amax` the largest magnitude in a block::

        scale  = amax / finfo(dtype).max      (1 where amax is 0)
        values = round_to_nearest_even(x * (1 / scale))

    bit by bit, each operation in float32, where numbers of `x` below 2**-126 may count as 0.
    Partial blocks at the edges are allowed. A finite block stays finite: where `amax / max` would
    be subnormal, the scale is the smallest normal float32, and with "pow2" values are clipped to
    those whose product with the scale is finite. NaN and Inf are never hidden: a block that holds
    one dequantizes to NaN and Inf, and no other block is touched.

    The kernel reads `x` once and writes the values, and the scales as `gemm` reads them. Every
    `implementation` gives the same bits, but for those of a NaN.

    With `group_sizes` or `masked_m`, rows that the product with these has no use for are not read,
    and become zeros with scale 1.

    Args:
        x: `(..., R, K)`, `bfloat16`, `float16` or `float32`; or what `swiglu`, `geglu`, `gelu`
            and `rms_norm` return, which the kernel computes on the way.
        block: `(1, 128)` for activations and gradients, `(128, 128)` for weights, of arrays only.
        dtype: `float8_e4m3fn` or `float8_e5m2`.
        scale_format: "float32", or "pow2" to round each scale up to a power of two, as UE8M0
            scales are.
        group_sizes: `(G,)` of any integer dtype, as for `grouped_gemm`: the leading
            `sum(group_sizes)` rows of x `(T, K)` are valid.
        masked_m: `(G,)` of any integer dtype, as for `grouped_gemm_masked`: of x `(G, M_max, K)`,
            the leading `masked_m[g]` rows of each group are valid.
        implementation: None, "cuda", "xla" or "sim", as for `gemm`.

    Returns:
        `BlockScaled` with values of shape `(..., R, K)` and scales of shape
        `(..., ceil(R / block[0]), ceil(K / block[1]))`.

    Raises:
        TypeError: `x` or `dtype` has an unsupported dtype, or `block` or `implementation`
            another type.
        ValueError: `x` has less than two dimensions or more than 2**31 - 513 rows, or
            `block`, `scale_format` or `implementation` is none of the above; or `group_sizes` and
            `masked_m` are both given, have another shape, or come with square blocks; or an
            activation does.
        NotImplementedError: `implementation` does not run on the platform lowered for.
        jax.errors.JaxRuntimeError: As `gemm`.

    Transformations:
        `jit`, `vmap`, `scan`, `shard_map`: yes. Sharding: values and scales are sharded as `x`
        is, without communication; devices that have parts of a block exchange their largest
        magnitudes and have all of its scales, in plain JAX whatever `implementation` is.
        `grad`: as JAX differentiates a division and a conversion, which is of no use in training;
        wrap what uses it in `jax.custom_vjp`.

    Example:
        >>> activations = quantize(x)                      # (M, K), scales (M, ceil(K / 128))
        >>> weight = quantize(w, block=(128, 128))         # scales (ceil(N / 128), ceil(K / 128))
        >>> y = gemm(activations, weight)                  # (M, N) bfloat16
    """
    op_name = "quantize"
    x = as_activation(op_name, "x", x)
    checks.at_least_2d(op_name, "x", x)
    block = checks.block(op_name, block)
    is_plain = isinstance(x, Plain)
    kind = KINDS[block] if is_plain else x.kind
    op = validated(op_name, kind, dtype, scale_format, implementation)
    # Rows of all matrices are one matrix, but square blocks do not go from one into the next.
    checks.addressable(op_name, "x", x.shape if block == checks.ROW_BLOCK else x.shape[-2:])
    sizes = _sizes(op_name, x, group_sizes, masked_m)
    if block != checks.ROW_BLOCK and (not is_plain or sizes is not None):
        what = "an activation" if sizes is None else "group_sizes or masked_m"
        raise ValueError(f"{op_name}: block must be {checks.ROW_BLOCK} with {what}, got {block}.")
    return BlockScaled.tree_unflatten(block, apply(op, x.operands(sizes)))


def _sizes(op_name: str, x: Any, group_sizes: Any, masked_m: Any) -> jax.Array | None:
    """Returns sizes of the groups of each matrix, which its valid rows are the sum of."""
    if group_sizes is not None and masked_m is not None:
        raise ValueError(f"{op_name}: group_sizes and masked_m must not both be given.")
    if group_sizes is not None:
        checks.matrix(op_name, "x", x)
        return group_checks.sizes(op_name, group_sizes, x.shape[0])
    if masked_m is not None:
        checks.groups(op_name, "x", x, "G, M_max, K")
        return group_checks.counts(op_name, masked_m, *x.shape[:2])[:, None]
    return None
