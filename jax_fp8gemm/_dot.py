# SPDX-License-Identifier: Apache-2.0
"""dot: a layer's product in FP8, with gradients. Calls _product and _weight_gradient."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_fp8gemm import _checks, _dispatch, _distribute, _product, _sharding, _weight_gradient
from jax_fp8gemm._block_scaled import BlockScaled, as_block_scaled
from jax_fp8gemm._quantize import quantize_in_rule
from jax_fp8gemm._residuals import Kept, keep

COTANGENT = "the cotangent"  # in messages
# Names of what the backward pass needs, for jax.checkpoint_policies.save_only_these_names.
ACTIVATION_NAME, WEIGHT_NAME = "fp8_activation", "fp8_weight"


class Options(NamedTuple):
    """The static part of a call."""

    where: str
    result_dtype: np.dtype
    x_dtype: np.dtype
    w_dtype: np.dtype | None  # None for a weight that came quantised
    implementation: str | None
    wanted: Any = None


def dot(
    x: jax.Array,
    w: jax.Array | BlockScaled,
    *,
    preferred_element_type: Any = None,
    implementation: str | None = None,
) -> jax.Array:
    """Multiplies activations by a weight in FP8, `x @ w`, for training and inference.

    Forward and backward run on float8 operands with float32 accumulation and one rounding::

        y  = Q1(x) @ Q2(w)              Q1: one scale per 1x128 along K, a power of two
        dx = Q1(dy) @ Q2(w).T           Q2: one scale per 128x128
        dw = Qt(Q1(x)).T @ Qt(dy)       Qt: one scale per 128 tokens of a column

    All values are `float8_e4m3fn`. The backward pass keeps Q1(x) and Q2(w), a byte per element (as
    `uint8`: policies of `jax.checkpoint` would not save float8 unharmed), and neither `x` nor `w`.
    Under `jax.checkpoint` they have the names "fp8_activation" and "fp8_weight"::

        policy = jax.checkpoint_policies.save_only_these_names("fp8_activation", "fp8_weight")

    Args:
        x: `(..., K)`, `bfloat16`, `float16` or `float32`; any extents.
        w: `(K, N)` of one of these dtypes; or the weight as `BlockScaled` of shape `(N, K)` and
            block (128, 128), as `quantize(w.T, (128, 128))` gives it. That gets no gradient: zero.
        preferred_element_type: Dtype of the result; None for the promoted one of `x` and `w`.
        implementation: None, "cuda", "xla" or "sim", as for `gemm`.

    Returns:
        `(..., N)`. Each gradient has the dtype of its operand.

    Raises:
        TypeError: An argument has an unsupported type or dtype; or forward mode is asked for.
        ValueError: Shapes disagree, `implementation` is unknown, or an explicit mesh divides a
            block of 128, or divides the operands so that one would have to move.
        NotImplementedError: As `gemm`.
        jax.errors.JaxRuntimeError: As `gemm`.

    Transformations:
        `jit`, `grad`, `vjp`, `scan`, `checkpoint`, `shard_map`, `vmap` and what they combine to.
        `jvp`, `jacfwd`, `hessian`: TypeError, as of every `jax.custom_vjp`. Prefer leading
        dimensions of `x` to `vmap` with a shared `w`: one weight gradient sums over them, while
        that of `vmap` is formed for each example and summed then.
        Sharding: of `x` and `w` over their outer dimensions is kept without communication; K
        divided on both sides, and tokens in `dw`, cost one all-reduce, or one reduce-scatter where
        the result is divided over the same devices.

    Example:
        >>> y = dot(activations, weight.T)                 # (M, K) x (K, N) -> (M, N)
        >>> loss = lambda w: dot(activations, w).astype(jnp.float32).mean()
        >>> dw = jax.grad(loss)(weight.T)                  # (K, N)
    """
    return dot_with_sharding("dot", x, w, preferred_element_type, implementation, None)


def dot_with_sharding(
    where: str, x, w, preferred_element_type, implementation: str | None, wanted
) -> jax.Array:
    """Returns `dot`, with the result divided as `wanted` in an explicit mesh."""
    implementation = _checks.implementation(where, implementation)
    _checks.array(where, "x", x, _checks.RESULT_DTYPES)
    if not x.shape:
        raise ValueError(f"{where}: x must have shape (..., K), got ().")
    _checks.addressable(where, "x", x.shape)
    if isinstance(w, BlockScaled):
        w = as_block_scaled(where, "w", w, (_checks.SQUARE_BLOCK,))
        _checks.matrix(where, "w", w)
        k, w_dtype, shape_name = w.shape[1], None, "(N, K)"
    else:
        _checks.array(where, "w", w, _checks.RESULT_DTYPES)
        _checks.matrix(where, "w", w)
        k, w_dtype, shape_name = w.shape[0], jnp.dtype(w.dtype), "(K, N)"
    if x.shape[-1] != k:
        raise ValueError(
            f"{where}: w must have shape {shape_name} with the K of x = {x.shape[-1]},"
            f" got {tuple(w.shape)}."
        )
    x_dtype = jnp.dtype(x.dtype)
    if preferred_element_type is None:
        preferred_element_type = _checks.promoted(x_dtype, w_dtype or x_dtype)
    result_dtype = _checks.dtype_of(
        where, "preferred_element_type", preferred_element_type, _checks.RESULT_DTYPES
    )
    options = Options(where, result_dtype, x_dtype, w_dtype, implementation, wanted)
    return _apply(*_dispatch.unify_varying((x, w)), options)


# Compiled as one program when called outside of jax.jit, inlined when called inside.
@functools.partial(jax.jit, static_argnums=2, inline=True)
def _apply(x: jax.Array, w: jax.Array | BlockScaled, options: Options) -> jax.Array:
    if x.ndim == 1:
        wanted = options.wanted and jax.sharding.PartitionSpec(None, *options.wanted)
        return _dot(x[None], w, options._replace(wanted=wanted))[0]
    return _dot(x, w, options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dot(x: jax.Array, w: jax.Array | BlockScaled, options: Options) -> jax.Array:
    return _forward(x, w, options)[0]


def quantiser(options: Options) -> Callable[..., BlockScaled]:
    """Returns `quantize_in_rule` for the rules of a call; it takes `name` and `axes` of x."""
    return functools.partial(
        quantize_in_rule, where=options.where, implementation=options.implementation
    )


def _forward(x: jax.Array, w: jax.Array | BlockScaled, options: Options):
    """Returns the product and what the backward pass needs: x, and w as `(K, N)`, in FP8."""
    quantised = quantiser(options)
    x = quantised(x, _checks.ROW_BLOCK, "pow2", name="x", axes=("m", "k"))
    x = keep(x, ACTIVATION_NAME)
    if isinstance(w, BlockScaled):
        w = keep(_transposed(w))
    else:
        w = quantised(w, _checks.SQUARE_BLOCK, name="w", axes=("k", "n"))
        w = keep(w, WEIGHT_NAME)
    y = _product_of(x, _transposed(w), options.result_dtype, options, options.wanted)
    return y, (x, w)


# Compiled as one program where jax.grad is called outside of jax.jit.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _backward(options: Options, residuals, dy: jax.Array):
    x, w = residuals
    like_x, like_w = _distribute.spec_of(x.bits), _distribute.spec_of(w.bits)
    # The operands follow the division of the gradients, which is not theirs to choose.
    dy_rows = quantiser(options)(dy, _checks.ROW_BLOCK, name=COTANGENT, axes=("m", "n"))
    dx = _product_of(keep(dy_rows), w, options.x_dtype, options, like_x, strict=False)
    if options.w_dtype is None:
        return dx, None
    dw = _weight_gradient.weight_gradient(
        x,
        dy,
        _weight_gradient.Options(
            options.where, jnp.dtype(jnp.float32), options.implementation, like_w
        ),
    )
    return dx, dw.astype(options.w_dtype)


_dot.defvjp(_forward, _backward)


def _transposed(w: BlockScaled | Kept) -> BlockScaled | Kept:
    """Returns the transpose; blocks of 128x128 stay blocks."""
    return jax.tree.map(lambda leaf: leaf.T, w)


def _product_of(
    x: Kept, w: Kept, result_dtype, options: Options, wanted, strict: bool = True
) -> jax.Array:
    """Returns x times the transpose of w, x with any leading dimensions."""
    leads = _sharding.names("b", x.bits.ndim - 2)
    return _product.product(
        (x.bits, x.scales, w.bits, w.scales, None),
        _product.Options(
            options.where,
            _checks.SQUARE_BLOCK,
            jnp.dtype(result_dtype),
            options.implementation,
            wanted=wanted,
            strict=strict,
            dtypes=(x.dtype, w.dtype),
        ),
        _product.Leads(result=leads, lhs=leads),
    )
