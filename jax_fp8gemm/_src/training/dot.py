# SPDX-License-Identifier: Apache-2.0
"""dot: a layer's product in FP8, with gradients."""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled, as_block_scaled
from jax_fp8gemm._src.ops.product import BatchDims, Product
from jax_fp8gemm._src.ops.quantizer import KINDS, RuleQuantizer
from jax_fp8gemm._src.training.residuals import Residual, keep
from jax_fp8gemm._src.training.weight_gradient import WeightGradient
from jax_fp8gemm._src.transforms import meshes, platforms
from jax_fp8gemm._src.transforms.apply import apply
from jax_fp8gemm._src.transforms.partitioner import names

COTANGENT = "the cotangent"  # in messages
_E4M3 = jnp.dtype(jnp.float8_e4m3fn)
# Names of what the backward pass needs, for jax.checkpoint_policies.save_only_these_names.
ACTIVATION_NAME, WEIGHT_NAME = "fp8_activation", "fp8_weight"


class Options(NamedTuple):
    """The static part of a call."""

    op_name: str
    result_dtype: np.dtype
    x_dtype: np.dtype
    w_dtype: np.dtype | None  # None for a weight that came quantized
    implementation: str | None
    out_sharding: Any = None


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
        ValueError: Shapes disagree, `implementation` is unknown, or an explicit mesh shards a
            block of 128, or shards the operands so that one would have to move.
        NotImplementedError: As `gemm`.
        jax.errors.JaxRuntimeError: As `gemm`.

    Transformations:
        `jit`, `grad`, `vjp`, `scan`, `checkpoint`, `shard_map`, `vmap` and what they combine to.
        `jvp`, `jacfwd`, `hessian`: TypeError, as of every `jax.custom_vjp`. Prefer leading
        dimensions of `x` to `vmap` with a shared `w`: one weight gradient sums over them, while
        that of `vmap` is formed for each example and summed then.
        Sharding: of `x` and `w` over their outer dimensions is kept without communication; K
        sharded on both sides, and tokens in `dw`, cost one all-reduce, or one reduce-scatter where
        the result is sharded over the same devices.

    Example:
        >>> y = dot(activations, weight.T)                 # (M, K) x (K, N) -> (M, N)
        >>> loss = lambda w: dot(activations, w).astype(jnp.float32).mean()
        >>> dw = jax.grad(loss)(weight.T)                  # (K, N)
    """
    return dot_with_sharding("dot", x, w, preferred_element_type, implementation, None)


def dot_with_sharding(
    op_name: str, x, w, preferred_element_type, implementation: str | None, out_sharding
) -> jax.Array:
    """Returns `dot`, with the result sharded as `out_sharding` in an explicit mesh."""
    implementation = checks.implementation(op_name, implementation)
    x = checks.floating(op_name, "x", x)
    if not x.shape:
        raise ValueError(f"{op_name}: x must have shape (..., K), got ().")
    checks.addressable(op_name, "x", x.shape)
    if isinstance(w, BlockScaled):
        w = as_block_scaled(op_name, "w", w, (checks.SQUARE_BLOCK,))
        checks.matrix(op_name, "w", w)
        k, w_dtype, shape_name = w.shape[1], None, "(N, K)"
    else:
        w = checks.floating(op_name, "w", w)
        checks.matrix(op_name, "w", w)
        k, w_dtype, shape_name = w.shape[0], jnp.dtype(w.dtype), "(K, N)"
    if x.shape[-1] != k:
        raise ValueError(
            f"{op_name}: w must have shape {shape_name} with the K of x = {x.shape[-1]},"
            f" got {tuple(w.shape)}."
        )
    x_dtype = jnp.dtype(x.dtype)
    if preferred_element_type is None:
        preferred_element_type = checks.promoted(x_dtype, w_dtype or x_dtype)
    result_dtype = checks.dtype_of(
        op_name, "preferred_element_type", preferred_element_type, checks.RESULT_DTYPES
    )
    options = Options(op_name, result_dtype, x_dtype, w_dtype, implementation, out_sharding)
    return _apply(*platforms.unify_varying((x, w)), options)


# Compiled as one program when called outside of jax.jit, inlined when called inside.
@functools.partial(jax.jit, static_argnums=2, inline=True)
def _apply(x: jax.Array, w: jax.Array | BlockScaled, options: Options) -> jax.Array:
    if x.ndim == 1:
        spec = options.out_sharding and jax.sharding.PartitionSpec(None, *options.out_sharding)
        x, options = x[None], options._replace(out_sharding=spec)
        return cast(jax.Array, _dot(x, w, options))[0]
    return _dot(x, w, options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dot(x: jax.Array, w: jax.Array | BlockScaled, options: Options) -> jax.Array:
    return _forward(x, w, options)[0]


def quantized(
    options: Options,
    x: jax.Array,
    block: tuple[int, int],
    scale_format: str = "float32",
    *,
    name: str,
    axes: tuple[str, str],
) -> BlockScaled:
    """Returns x in e4m3, inside a derivative rule; messages call it and its dimensions so."""
    op = RuleQuantizer(
        options.op_name, KINDS[block], _E4M3, scale_format, options.implementation, name, axes
    )
    return BlockScaled.tree_unflatten(block, apply(op, (x, None, None)))


def keep_both(
    options: Options,
    x: jax.Array,
    w: jax.Array | BlockScaled,
    *,
    called: tuple[str, str],
    rows: str,
) -> tuple[Residual, Residual]:
    """Returns activations `(..., K)` and weights `(..., K, N)` in FP8, for both passes.

    Messages call them as `called` says, and the rows of the activations `rows`.
    """
    x_name, w_name = called
    x_rows = quantized(options, x, checks.ROW_BLOCK, "pow2", name=x_name, axes=(rows, "k"))
    kept_x = keep(x_rows, ACTIVATION_NAME)
    if isinstance(w, BlockScaled):
        return kept_x, keep(w).transpose()
    w_blocks = quantized(options, w, checks.SQUARE_BLOCK, name=w_name, axes=("k", "n"))
    return kept_x, keep(w_blocks, WEIGHT_NAME)


def _forward(x: jax.Array, w: jax.Array | BlockScaled, options: Options):
    """Returns the product and what the backward pass needs: x, and w as `(K, N)`, in FP8."""
    kept_x, kept_w = keep_both(options, x, w, called=("x", "w"), rows="m")
    y = _product(kept_x, kept_w.transpose(), options.result_dtype, options, options.out_sharding)
    return y, (kept_x, kept_w)


# Compiled as one program where jax.grad is called outside of jax.jit.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _backward(options: Options, residuals, dy: jax.Array):
    x, w = residuals
    # The operands follow the division of the gradients, which is not theirs to choose.
    dy_rows = quantized(options, dy, checks.ROW_BLOCK, name=COTANGENT, axes=("m", "n"))
    like_x = meshes.spec_of(x.bits)
    dx = _product(keep(dy_rows), w, options.x_dtype, options, like_x, allow_reshard=True)
    if options.w_dtype is None:
        return dx, None
    dw = apply(
        WeightGradient(options.op_name, jnp.dtype(jnp.float32), options.implementation),
        (x.bits, x.scales, dy),
        out_sharding=meshes.spec_of(w.bits),
        allow_reshard=True,
    )
    return dx, dw.astype(options.w_dtype)


_dot.defvjp(_forward, _backward)


def _product(
    x: Residual,
    w: Residual,
    result_dtype: np.dtype,
    options: Options,
    out_sharding: Any,
    allow_reshard: bool = False,
) -> jax.Array:
    """Returns x times the transpose of w, x with any leading dimensions."""
    batch = names("b", x.bits.ndim - 2)
    op = Product(
        options.op_name,
        checks.SQUARE_BLOCK,
        result_dtype,
        options.implementation,
        dtypes=(x.dtype, w.dtype),
        batch_dims=BatchDims(result=batch, lhs=batch),
    )
    operands = (x.bits, x.scales, w.bits, w.scales, None)
    return apply(op, operands, out_sharding=out_sharding, allow_reshard=allow_reshard)
