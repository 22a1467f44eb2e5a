# SPDX-License-Identifier: Apache-2.0
"""trained_product: the product behind `dot` and `ragged_dot`, and its derivative rule."""

import functools
import warnings
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled
from jax_fp8gemm._src.ops.activation import ActivationOperand
from jax_fp8gemm._src.ops.grouped_gemm import Ragged
from jax_fp8gemm._src.ops.product import BatchDims, Product
from jax_fp8gemm._src.training.master_weight import MasterWeight
from jax_fp8gemm._src.training.quantized import Options, Weight, keep_both, quantized_cotangent
from jax_fp8gemm._src.training.residuals import Residual, keep
from jax_fp8gemm._src.training.weight_gradient import weight_gradient
from jax_fp8gemm._src.transforms import meshes, platforms
from jax_fp8gemm._src.transforms.apply import apply
from jax_fp8gemm._src.transforms.partitioner import names
from jax_fp8gemm._src.xla import quantize as xla_quantize


def trained_product(
    x: ActivationOperand, w: Weight, group_sizes: jax.Array | None, options: Options
) -> jax.Array:
    """Returns activations `(..., K)` times a weight, or rows of groups each times its own weight.

    Args:
        x: The activations; `(T, K)` with groups.
        w: `(K, N)`, or `(N, K)` if `options.w_is_nk`; of each group with `group_sizes`.
        group_sizes: `(G,)`, or None for one weight.
        options: The static part of the call.
    """
    return _apply(*platforms.unify_varying((x, w, group_sizes)), options)


# Compiled as one program when called outside of jax.jit, inlined when called inside.
@functools.partial(jax.jit, static_argnums=3, inline=True)
def _apply(
    x: ActivationOperand, w: Weight, group_sizes: jax.Array | None, options: Options
) -> jax.Array:
    if x.ndim > 1:
        return _differentiable(x, w, group_sizes, options)
    spec = options.out_sharding and PartitionSpec(None, *options.out_sharding)
    options = options._replace(out_sharding=spec)
    x = x.map_rows(lambda row: row[None])
    return cast(jax.Array, _differentiable(x, w, group_sizes, options))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _differentiable(x, w, group_sizes, options: Options) -> jax.Array:
    return _forward_product(*keep_both(options, x, w, group_sizes), group_sizes, options)


class _Kept(NamedTuple):
    """What the backward pass needs; a tree whose structure does not depend on what is wanted.

    JAX pairs the arrays of a forward pass with the structure of the one that it traced last, which
    may have been for other gradients. So an array says which are wanted, by its shape.
    """

    x: Residual
    w: Residual
    group_sizes: jax.Array | None
    gradient: jax.Array | None  # the sum that the gradient of w is added to
    activation: Any  # what x is computed from; empty arrays where its gradient is not wanted
    wanted: jax.Array  # `(0, X, W)`, X and W being 1 where the gradient of x, of w, is wanted


def _forward(x, w, group_sizes, options: Options) -> tuple[jax.Array, _Kept]:
    (x, wants_x), (w, wants_w), (group_sizes, _) = map(_primal, (x, w, group_sizes))
    if isinstance(w, BlockScaled) and wants_w:
        _warn_of_zeros(options)
        wants_w = False
    kept_x, kept_w = keep_both(options, x, w, group_sizes)
    y = _forward_product(kept_x, kept_w, group_sizes, options)
    gradient = w.gradient if isinstance(w, MasterWeight) else None
    activation = x.residual()
    if not wants_x:
        activation = jax.tree.map(lambda leaf: jnp.empty((0,), leaf.dtype), activation)
    wanted = jnp.empty((0, wants_x, wants_w))
    return y, _Kept(kept_x, kept_w, group_sizes, gradient, activation, wanted)


def _primal(operand) -> tuple[Any, bool]:
    """Returns an operand of a forward pass, and whether its gradient is asked for."""
    leaves, structure = jax.tree.flatten(operand, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    values = structure.unflatten([leaf.value for leaf in leaves])
    return values, any(leaf.perturbed for leaf in leaves)


def _warn_of_zeros(options: Options) -> None:
    warnings.warn(
        f"{options.op_name}: {options.w_name} is a BlockScaled, which has no gradient: zeros take"
        " its place. For the gradient of the array that it was made of, give the array itself, or"
        " a MasterWeight, which holds both; for none, use jax.lax.stop_gradient on it.",
        stacklevel=2,
    )


def _backward(options: Options, kept: _Kept, dy: jax.Array | SymbolicZero):
    if isinstance(dy, SymbolicZero):
        return None, _weight_cotangent(options, kept.gradient, kept.gradient), None
    return _gradients(options, kept, dy)


# Compiled as one program where jax.grad is called outside of jax.jit.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _gradients(options: Options, kept: _Kept, dy: jax.Array):
    x, w, group_sizes, gradient, activation, wanted = kept
    wants_x, wants_w = map(bool, wanted.shape[1:])
    if wants_w:
        dw, dy_rows = weight_gradient(options, x, dy, group_sizes, gradient, gives_rows=wants_x)
        dw = _weight_cotangent(options, dw, gradient)
    else:
        dw, dy_rows = None, keep(quantized_cotangent(options, dy, group_sizes))
    if not wants_x:
        return None, dw, None
    # dx is sharded as x is, and operands are resharded for it: nobody chose how dy arrives.
    dx = _product(
        cast(Residual, dy_rows),
        w,
        group_sizes,
        options.x_dtype,
        options,
        out_sharding=meshes.spec_of(x.bits),
        allow_reshard=True,
        is_kn=options.w_is_nk,
    )
    if group_sizes is not None:  # rows in no group may be anything
        activation = activation.map_rows(lambda rows: _zeros_past(group_sizes, rows))
    return activation.gradient(dx), dw, None


_differentiable.defvjp(_forward, _backward, symbolic_zeros=True)


def _zeros_past(group_sizes: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns rows, or one number for each, with zeros for those in no group."""
    return xla_quantize.valid_rows(lax.collapse(rows, 1), group_sizes).reshape(rows.shape)


def _weight_cotangent(options: Options, dw: jax.Array | None, gradient: jax.Array | None):
    """Returns dw in the place of the weight, or in that of the sum that it was added to."""
    if not options.has_master:
        return dw
    nothing = cast(Any, None)  # of a gradient: zeros
    parts: Any = (dw, nothing, nothing) if gradient is None else (nothing, nothing, dw)
    return MasterWeight(*parts)


def _forward_product(
    x: Residual, w: Residual, group_sizes: jax.Array | None, options: Options
) -> jax.Array:
    return _product(
        x,
        w,
        group_sizes,
        options.result_dtype,
        options,
        out_sharding=options.out_sharding,
        allow_reshard=options.out_sharding is not None,
        is_kn=not options.w_is_nk,
    )


def _product(
    x: Residual,
    w: Residual,
    group_sizes: jax.Array | None,
    result_dtype: np.dtype,
    options: Options,
    *,
    out_sharding: PartitionSpec | None,
    allow_reshard: bool,
    is_kn: bool,
) -> jax.Array:
    """Returns x times w, each `(K, N)` if `is_kn`, or else `(N, K)`."""
    reduce_dtype = options.recipe.reduce_dtype or result_dtype
    if group_sizes is None:
        batch = names("b", x.bits.ndim - 2)
        op = Product(
            options.op_name,
            checks.SQUARE_BLOCK,
            result_dtype,
            options.implementation,
            dtypes=(x.dtype, w.dtype),
            batch_dims=BatchDims(result=batch, lhs=batch),
            rhs_is_kn=is_kn,
            reduce_dtype=reduce_dtype,
        )
        operands = (x.bits, x.scales, w.bits, w.scales, None)
    else:
        op = Ragged(
            options.op_name, result_dtype, options.implementation, reduce_dtype=reduce_dtype
        )
        w = w.transpose() if is_kn else w
        rows, weights = x.restore(), w.restore()
        operands = (rows.values, rows.scales, weights.values, weights.scales, group_sizes)
    return apply(op, operands, out_sharding=out_sharding, allow_reshard=allow_reshard)
