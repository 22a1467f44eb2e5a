# SPDX-License-Identifier: Apache-2.0
"""gemm: the dense block-scaled product."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import Operand, as_block_scaled
from jax_fp8gemm._src.ops.product import Product
from jax_fp8gemm._src.transforms.apply import apply


def gemm(
    lhs: Operand,
    rhs: Operand,
    *,
    accumulator: jax.Array | None = None,
    preferred_element_type: Any = jnp.bfloat16,
    implementation: str | None = None,
    num_sms: int | None = None,
) -> jax.Array:
    """Multiplies two block-scaled float8 matrices, `lhs @ rhs.T` after dequantization.

    With scales of 1x128 blocks for `lhs` and of 128x128 (or 1x128) blocks for `rhs`, in
    float32::

        out[m, n] = accumulator[m, n]
                    + sum over k of  lhs.values[m, k] * lhs.scales[m, k // 128]
                                   * rhs.values[n, k] * rhs.scales[n // 128, k // 128]

    and one rounding to `preferred_element_type` at the end. The order of the additions is not that
    of k: the kernels sum a block of 128 in the tensor core, multiply it by the product of its two
    scales, and add it to the blocks before; plain JAX dequantizes first and sums as XLA does. What
    may differ is within `testing.TOLERANCE`. Results are bitwise deterministic;
    docs/models.md says what holds across shapes.

    **Range.** The product of the two scales of a block must be a normal float32 number, from
    2**-126 to 2**128. The kernels form it: below this range a block may count as 0, above it makes
    the result infinite or NaN, also where the exact result is finite. Plain JAX, which multiplies
    each operand by its own scale, may be right there. Scales of `quantize` are in range where the
    largest magnitudes of the two blocks, multiplied, are from 2**-108 to 2**145.

    On a GPU the first use of a shape compiles a kernel unless the disk cache holds it; under
    `jax.jit` that happens while XLA compiles, never while the program runs.

    Args:
        lhs: `(M, K)` with block (1, 128), as `BlockScaled` or as a plain `(values, scales)`;
            any M and K. Values are `float8_e4m3fn` or `float8_e5m2`, independently of `rhs`.
        rhs: `(N, K)` with block (128, 128) or (1, 128), K last as in a weight of shape
            `(out_features, in_features)`; any N. Of a plain tuple the block is read off the
            shapes.
        accumulator: `(M, N)` of dtype `preferred_element_type`, added before the rounding; or
            None. It may be donated.
        preferred_element_type: Dtype of the result: `bfloat16`, `float16` or `float32`.
        implementation: None for "cuda" where the program is lowered for CUDA and every GPU that
            JAX sees is Hopper, "xla" elsewhere; "cuda" for the Hopper kernels; "xla" for plain
            JAX on any device; "sim" for the kernels' own source simulated on the CPU, thread by
            thread, for tests.
        num_sms: Use at most this many SMs, 1 to 1024; None for all of them.

    Returns:
        `(M, N)` array of dtype `preferred_element_type`; zeros, or the accumulator, when K is 0.

    Raises:
        TypeError: An argument has an unsupported type or dtype; or the result is differentiated.
        ValueError: Shapes disagree, an operand has another block or more than 2**31 - 513 rows or
            columns, `implementation` is unknown or `num_sms` is out of range.
        NotImplementedError: `implementation` is "cuda" and the program is lowered for another
            platform, or "sim" and it is lowered for another one than the CPU.
        jax.errors.JaxRuntimeError: The GPU is not a Hopper one, or the kernel's compiler is
            missing or fails.

        The first two are raised while tracing, before anything is compiled.

    Transformations:
        `jit`, `scan`, `shard_map`: yes. `vmap`: yes, and it stays one kernel launch: with a shared
        `rhs` the batch is folded into M, with a batched one of up to 512 each is a group; only with
        more do the launches follow one another. `grad`, `jvp`: TypeError; what trains wraps this
        in `jax.custom_vjp`.

    Example:
        >>> x = quantize(activations)                      # (M, K)
        >>> w = quantize(weight, block=(128, 128))         # (N, K)
        >>> y = gemm(x, w)                                 # (M, N) bfloat16
    """
    op_name = "gemm"
    implementation = checks.implementation(op_name, implementation)
    num_sms = checks.num_sms(op_name, num_sms)
    result_dtype = checks.result_dtype(op_name, preferred_element_type)
    lhs = as_block_scaled(op_name, "lhs", lhs, (checks.ROW_BLOCK,))
    rhs = as_block_scaled(op_name, "rhs", rhs, (checks.SQUARE_BLOCK, checks.ROW_BLOCK))
    checks.matrix(op_name, "lhs", lhs)
    checks.matrix(op_name, "rhs", rhs)
    checks.same_extent(op_name, lhs, rhs, "N, K")
    if accumulator is not None:
        checks.accumulator(op_name, accumulator, (lhs.shape[0], rhs.shape[0]), result_dtype)
    op = Product(op_name, rhs.block, result_dtype, implementation, num_sms)
    operands = (lhs.values, lhs.scales, rhs.values, rhs.scales, accumulator)
    return apply(op, operands)
