# SPDX-License-Identifier: Apache-2.0
"""gemm: the dense block-scaled product. Called by users; calls _ffi.gemm or _xla.gemm."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jax_fp8gemm import _checks, _dispatch, _xla
from jax_fp8gemm._block_scaled import BlockScaled, as_block_scaled

Operand = BlockScaled | tuple[jax.Array, jax.Array]


class _Options(NamedTuple):
    """The static part of a call."""

    rhs_block: tuple[int, int]
    result_dtype: np.dtype
    implementation: str | None
    num_sms: int | None


def gemm(
    lhs: Operand,
    rhs: Operand,
    *,
    accumulator: jax.Array | None = None,
    preferred_element_type: Any = jnp.bfloat16,
    implementation: str | None = None,
    num_sms: int | None = None,
) -> jax.Array:
    """Multiplies two block-scaled float8 matrices, `lhs @ rhs.T` of what they stand for.

    With scales of 1x128 blocks for `lhs` and of 128x128 (or 1x128) blocks for `rhs`, in
    float32::

        out[m, n] = accumulator[m, n]
                    + sum over k of  lhs.values[m, k] * lhs.scales[m, k // 128]
                                   * rhs.values[n, k] * rhs.scales[n // 128, k // 128]

    and one rounding to `preferred_element_type` at the end. On a GPU the first use of a shape
    compiles a kernel unless the disk cache holds it; under `jax.jit` that happens while XLA
    compiles, never while the program runs. Results are the same bits from call to call.

    Args:
        lhs: `(M, K)` with block (1, 128), as `BlockScaled` or as a plain `(values, scales)`;
            any M and K. Values are `float8_e4m3fn` or `float8_e5m2`, independently of `rhs`.
        rhs: `(N, K)` with block (128, 128) or (1, 128), K last as in a weight of shape
            `(out_features, in_features)`; any N. Of a plain tuple the block is read off the
            shapes.
        accumulator: `(M, N)` of dtype `preferred_element_type`, added before the rounding; or
            None. It may be donated.
        preferred_element_type: Dtype of the result: `bfloat16`, `float16` or `float32`.
        implementation: None for "cuda" where the program is lowered for CUDA and "xla"
            elsewhere; "cuda" for the Hopper kernels; "xla" for plain JAX on any device; "sim"
            for the kernels' own source simulated on the CPU, thread by thread, for tests.
        num_sms: Use at most this many SMs, 1 to 1024; None for all of them.

    Returns:
        `(M, N)` array of dtype `preferred_element_type`; zeros, or the accumulator, when K is 0.

    Raises:
        TypeError: An argument has an unsupported type or dtype; or the result is differentiated.
        ValueError: Shapes disagree, an operand has another block, `implementation` is unknown or
            `num_sms` is out of range.
        NotImplementedError: `implementation` is "cuda" and the program is lowered for another
            platform, or "sim" and it is lowered for another one than the CPU.
        jax.errors.JaxRuntimeError: The GPU is not a Hopper one, or the kernel's compiler is
            missing or fails.

        The first two are raised while tracing, before anything is compiled.

    Transformations:
        `jit`, `scan`, `shard_map`: yes. `vmap`: yes, and it stays one kernel launch: with a shared
        `rhs` the batch is folded into M, with a batched one of up to 512 each is a group. Only with
        more, or with 1x128 scales of a batched `rhs`, do the launches follow one another.
        `grad`, `jvp`: TypeError; what trains wraps this in `jax.custom_vjp`.

    Example:
        >>> x = quantize(activations)                      # (M, K)
        >>> w = quantize(weight, block=(128, 128))         # (N, K)
        >>> y = gemm(x, w)                                 # (M, N) bfloat16
    """
    where = "gemm"
    implementation = _checks.implementation(where, implementation)
    num_sms = _checks.num_sms(where, num_sms)
    result_dtype = _checks.dtype_of(
        where, "preferred_element_type", preferred_element_type, _checks.RESULT_DTYPES
    )
    lhs = as_block_scaled(where, "lhs", lhs, (_checks.ROW_BLOCK,))
    rhs = as_block_scaled(where, "rhs", rhs, (_checks.SQUARE_BLOCK, _checks.ROW_BLOCK))
    _checks.matrix(where, "lhs", lhs)
    _checks.matrix(where, "rhs", rhs)
    _checks.same_k(where, lhs, rhs)
    if accumulator is not None:
        _checks.accumulator(where, accumulator, (lhs.shape[0], rhs.shape[0]), result_dtype)
    options = _Options(rhs.block, result_dtype, implementation, num_sms)
    operands = (lhs.values, lhs.scales, rhs.values, rhs.scales, accumulator)
    return _gemm(_dispatch.unify_varying(operands), options)


# Compiled as one program when called outside of jax.jit, inlined when called inside.
@functools.partial(jax.jit, static_argnums=1, inline=True)
def _gemm(operands: tuple, options: _Options) -> jax.Array:
    guarded = jax.custom_jvp(_single(options))

    @guarded.defjvp
    def refuse(primals, tangents):
        raise TypeError(
            "gemm is not differentiable: float8 operands have no useful gradients. Wrap the"
            " computation from quantize to gemm in jax.custom_vjp, or stop the gradient at its"
            " operands with jax.lax.stop_gradient."
        )

    return guarded(*operands)


def _single(options: _Options):
    """Returns the product of two matrices, with its batching rule."""
    xla = _xla_gemm(options)

    def kernel(*operands, backend):
        return _kernel_gemm(operands, options, backend)

    @custom_vmap
    def single(*operands):
        return _by_platform(operands, options, kernel, xla)

    @single.def_vmap
    def fold_or_batch(axis_size, in_batched, *operands):
        lhs_values, lhs_scales, rhs_values, rhs_scales, accumulator = operands
        if in_batched[2] or in_batched[3]:
            return _batched(options)(*_batch_all(axis_size, in_batched, operands)), True
        batched = _batch_all(
            axis_size, in_batched, (lhs_values, lhs_scales, None, None, accumulator)
        )
        lhs_values, lhs_scales, _, _, accumulator = jax.tree.map(_merge_leading, batched)
        out = single(lhs_values, lhs_scales, rhs_values, rhs_scales, accumulator)
        return out.reshape(axis_size, lhs_values.shape[0] // axis_size, out.shape[1]), True

    return single


def _batched(options: _Options):
    """Returns the products of batches of matrices, every operand with the batch in front."""
    xla = jax.vmap(_xla_gemm(options))

    def kernel(*operands, backend):
        if options.rhs_block == _checks.SQUARE_BLOCK and len(operands[0]) <= _checks.MAX_GROUPS:
            return _kernel_batch(operands, options, backend)
        return lax.map(lambda each: _kernel_gemm(each, options, backend), operands)

    @custom_vmap
    def batched(*operands):
        return _by_platform(operands, options, kernel, xla)

    @batched.def_vmap
    def merge(axis_size, in_batched, *operands):
        operands = jax.tree.map(_merge_leading, _batch_all(axis_size, in_batched, operands))
        out = batched(*operands)
        return out.reshape(axis_size, out.shape[0] // axis_size, *out.shape[1:]), True

    return batched


def _by_platform(operands: tuple, options: _Options, kernel, xla) -> jax.Array:
    lhs_values, _, rhs_values, *_ = operands
    shape = (*lhs_values.shape[:-1], rhs_values.shape[-2])
    return _dispatch.by_platform(
        "gemm",
        options.implementation,
        operands,
        kernel=kernel,
        xla=xla,
        result_shape=shape,
        result_dtype=options.result_dtype,
    )


def _xla_gemm(options: _Options):
    return functools.partial(
        _xla.gemm, rhs_block=options.rhs_block, preferred_element_type=options.result_dtype
    )


def _kernel_gemm(operands: tuple, options: _Options, backend: str) -> jax.Array:
    """Returns the product by a kernel; without one where there is nothing to multiply."""
    if operands[0].size == 0 or operands[2].size == 0:
        return _xla_gemm(options)(*operands)
    from jax_fp8gemm import _ffi  # here, so that importing the package loads no extension

    lhs_values, lhs_scales, rhs_values, rhs_scales, accumulator = operands
    return _ffi.matmul(
        "dense",
        lhs_values,
        lhs_scales,
        rhs_values,
        rhs_scales,
        None,
        accumulator,
        m=lhs_values.shape[0],
        n=rhs_values.shape[0],
        num_groups=1,
        d_rows=lhs_values.shape[0],
        rhs_is_1x128=options.rhs_block == _checks.ROW_BLOCK,
        preferred_element_type=options.result_dtype,
        num_sms=options.num_sms,
        backend=backend,
    )


def _kernel_batch(operands: tuple, options: _Options, backend: str) -> jax.Array:
    """Returns the products of a batch by one launch, each matrix a group all of whose rows count.

    An accumulator is added behind it: kernels of groups do not.
    """
    lhs_values, lhs_scales, rhs_values, rhs_scales, accumulator = operands
    if lhs_values.size == 0 or rhs_values.size == 0:
        return jax.vmap(_xla_gemm(options))(*operands)
    from jax_fp8gemm import _ffi  # here, so that importing the package loads no extension

    batch, m, _ = lhs_values.shape
    n = rhs_values.shape[1]
    out = _ffi.matmul(
        "masked",
        *map(_merge_leading, (lhs_values, lhs_scales, rhs_values, rhs_scales)),
        lax.full_like(lhs_values, m, jnp.int32, (batch,)),
        None,
        m=m,
        n=n,
        num_groups=batch,
        d_rows=batch * m,
        expected_m=m,
        preferred_element_type=options.result_dtype if accumulator is None else jnp.float32,
        num_sms=options.num_sms,
        backend=backend,
    ).reshape(batch, m, n)
    if accumulator is None:
        return out
    return (out + accumulator.astype(jnp.float32)).astype(options.result_dtype)


def _batch_all(axis_size: int, in_batched, operands: tuple) -> tuple:
    """Returns the operands, each present one with the batch in front."""
    return tuple(
        x if x is None or is_batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        for x, is_batched in zip(operands, in_batched, strict=True)
    )


def _merge_leading(x: jax.Array) -> jax.Array:
    """Returns x with its two leading dimensions merged."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
