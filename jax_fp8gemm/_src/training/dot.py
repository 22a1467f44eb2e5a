# SPDX-License-Identifier: Apache-2.0
"""dot: a layer's product in FP8, with gradients."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.sharding import NamedSharding, PartitionSpec

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled, as_block_scaled
from jax_fp8gemm._src.ops.activation import ActivationOperand
from jax_fp8gemm._src.ops.product import BatchDims, Product
from jax_fp8gemm._src.training import master_weight
from jax_fp8gemm._src.training.master_weight import MasterWeight
from jax_fp8gemm._src.training.quantized import (
    Options,
    Weight,
    keep_both,
    primals,
    quantized_cotangent,
)
from jax_fp8gemm._src.training.quantized_activation import (
    Activations,
    checked_activations,
)
from jax_fp8gemm._src.training.recipe import Recipe, chosen
from jax_fp8gemm._src.training.residuals import Residual, keep
from jax_fp8gemm._src.training.weight_gradient import WeightGradient
from jax_fp8gemm._src.transforms import meshes, platforms
from jax_fp8gemm._src.transforms.apply import apply
from jax_fp8gemm._src.transforms.partitioner import names


def dot(
    x: Activations,
    w: Weight,
    *,
    preferred_element_type: Any = None,
    implementation: str | None = None,
    recipe: Recipe | None = None,
    out_sharding: NamedSharding | PartitionSpec | None = None,
) -> jax.Array:
    """Multiplies activations by a weight in FP8, `x @ w`, for training and inference.

    Forward and backward run on float8 operands with float32 accumulation and one rounding::

        y  = Q1(x) @ Q2(w)              Q1: one scale per 1x128 along K, a power of two
        dx = Q1(dy) @ Q2(w).T           Q2: one scale per 128x128
        dw = Qt(Q1(x)).T @ Qt(dy)       Qt: one scale per 128 tokens of a column

    All values are `float8_e4m3fn`. In the kernels the largest magnitudes of two blocks that are
    multiplied must have a product from 2**-108 to 2**145, the range that `gemm` states: below it
    the blocks may count as 0, above it the result may be infinite or NaN.

    The backward pass keeps Q1(x) and Q2(w), a byte per element (as `uint8`: policies of
    `jax.checkpoint` would not save float8 unharmed), and neither `x` nor `w`.
    Under `jax.checkpoint` they have the names "fp8_activation" and "fp8_weight"::

        policy = jax.checkpoint_policies.save_only_these_names("fp8_activation", "fp8_weight")

    Args:
        x: `(..., K)`, `bfloat16`, `float16` or `float32`; any extents. Or what `swiglu`, `geglu`,
            `gelu` and `rms_norm` return, whose factors are kept for their gradients; or a
            `QuantizedActivation`, which is not quantized again.
        w: `(K, N)` of one of these dtypes; or a `MasterWeight` of that shape, which is not
            quantized again; or the weight as `BlockScaled` of shape `(N, K)` and block (128, 128),
            as `quantize(w.T, (128, 128))` gives it. That gets no gradient: zero, with a warning.
        preferred_element_type: Dtype of the result; None for the promoted one of `x` and `w`.
        implementation: None, "cuda", "xla" or "sim", as for `gemm`.
        recipe: Formats of gradients and sums over devices; None for that of `use_recipe`, or else
            `Recipe()`, which is what the formulas above say.
        out_sharding: How an explicit mesh shards the result, or None for what moves nothing but
            operands along K, as `x @ w` does.

    Returns:
        `(..., N)`. Each gradient has the dtype of its operand.

    Raises:
        TypeError: An argument has an unsupported type or dtype; or forward mode is asked for.
        ValueError: Shapes disagree, `implementation` is unknown, an explicit mesh shards two
            dimensions of the result over one of its axes, or `out_sharding` is given without one.
        NotImplementedError: As `gemm`.
        jax.errors.JaxRuntimeError: As `gemm`.

    Transformations:
        `jit`, `grad`, `vjp`, `scan`, `checkpoint`, `shard_map`, `vmap` and what they combine to.
        `jvp`, `jacfwd`, `hessian`: TypeError, as of every `jax.custom_vjp`. Prefer leading
        dimensions of `x` to `vmap` with a shared `w`: one weight gradient sums over them, while
        that of `vmap` is formed for each example and summed then.
        Sharding: of `x` and `w` over their outer dimensions is kept without communication; K
        sharded on both sides, and tokens in `dw`, cost one all-reduce, or one reduce-scatter where
        the result is sharded over the same devices; devices that have parts of a block of 128
        exchange its largest magnitude. Weights that have to be gathered travel in FP8, once for a
        backward pass that computes the forward pass again.

    Example:
        >>> y = dot(activations, weight.T)                 # (M, K) x (K, N) -> (M, N)
        >>> loss = lambda w: dot(activations, w).astype(jnp.float32).mean()
        >>> dw = jax.grad(loss)(weight.T)                  # (K, N)
    """
    ndim = getattr(x, "ndim", 0)
    spec = meshes.explicit_spec("dot", out_sharding, ndim, *jax.tree.leaves((x, w)))
    return dot_of("dot", x, w, preferred_element_type, implementation, recipe, spec)


def dot_of(
    op_name: str,
    x: Activations,
    w: Weight,
    preferred_element_type: Any,
    implementation: str | None,
    recipe: Recipe | None,
    out_sharding: PartitionSpec | None,
    *,
    w_is_nk: bool = False,
) -> jax.Array:
    """Returns `dot`, of a weight `(N, K)` if `w_is_nk`, for the function that messages name."""
    implementation = checks.implementation(op_name, implementation)
    recipe = chosen(op_name, recipe)
    operand = checked_activations(op_name, "x", x)
    if not operand.shape:
        raise ValueError(f"{op_name}: x must have shape (..., K), got ().")
    checks.addressable(op_name, "x", operand.shape)
    w, w_dtype = checked_weight(op_name, "w", w)
    checks.matrix(op_name, "w", w)
    w_is_nk = w_is_nk or w_dtype is None
    k, shape_name = (w.shape[1], "(N, K)") if w_is_nk else (w.shape[0], "(K, N)")
    if operand.shape[-1] != k:
        raise ValueError(
            f"{op_name}: w must have shape {shape_name} with the K of x = {operand.shape[-1]},"
            f" got {tuple(w.shape)}."
        )
    x_dtype = jnp.dtype(operand.dtype)
    options = Options(
        op_name,
        result_dtype_of(op_name, preferred_element_type, x_dtype, w_dtype),
        x_dtype,
        w_dtype,
        implementation,
        recipe,
        out_sharding,
        w_is_nk,
        has_master=isinstance(w, MasterWeight),
        gradient_spec=gradient_spec(op_name, "w", w, operand.x),
    )
    return _apply(*platforms.unify_varying((operand, w)), options)


def checked_weight(op_name: str, name: str, w: Any) -> tuple[Weight, np.dtype | None]:
    """Returns the weight, and its dtype or None where it came quantized."""
    if isinstance(w, BlockScaled):
        return as_block_scaled(op_name, name, w, (checks.SQUARE_BLOCK,)), None
    if isinstance(w, MasterWeight):
        w = master_weight.validated(op_name, name, w)
    else:
        w = checks.floating(op_name, name, w)
    return w, jnp.dtype(w.dtype)


def gradient_spec(op_name: str, name: str, w: Weight, x: jax.Array) -> PartitionSpec | None:
    """Returns how an explicit mesh shards the gradient, as the part of the weight that it is of."""
    if isinstance(w, BlockScaled):
        return None
    if not isinstance(w, MasterWeight):
        return meshes.spec_of(w)
    if w.gradient is None:
        return meshes.spec_of(w.master)
    missing = platforms.varying_axes(x) - platforms.varying_axes(w.gradient)
    if missing:
        raise ValueError(
            f"{op_name}: {name}.gradient must vary over the mesh axes that the activations vary"
            f" over, got none for each of {sorted(missing)}: each device would add the same sum."
            " Give each a sum of its own, and add them up at the end."
        )
    return meshes.spec_of(w.gradient)


def result_dtype_of(
    op_name: str, preferred: Any, x_dtype: np.dtype, w_dtype: np.dtype | None
) -> np.dtype:
    """Returns the dtype that a result is to have."""
    if preferred is None:
        return checks.promoted(x_dtype, w_dtype or x_dtype)
    return checks.result_dtype(op_name, preferred)


# Compiled as one program when called outside of jax.jit, inlined when called inside.
@functools.partial(jax.jit, static_argnums=2, inline=True)
def _apply(x: ActivationOperand, w: Weight, options: Options) -> jax.Array:
    if x.ndim == 1:
        spec = options.out_sharding and PartitionSpec(None, *options.out_sharding)
        x = x.map_rows(lambda row: row[None])
        options = options._replace(out_sharding=spec)
        return cast(jax.Array, _dot(x, w, options))[0]
    return _dot(x, w, options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dot(x: ActivationOperand, w: Weight, options: Options) -> jax.Array:
    return _product_of(x, w, options)[0]


def _forward(x, w, options: Options):
    """Returns the product and what the backward pass needs.

    x and w in FP8, a sum to add to, what x is an activation of, and which gradients are wanted.
    """
    x, w, wanted = primals(options.op_name, "w", x, w)
    y, kept = _product_of(x, w, options)
    gradient = w.gradient if isinstance(w, MasterWeight) else None
    return y, (*kept, gradient, x.residual() if wanted.x else None, wanted)


def _product_of(x: ActivationOperand, w: Weight, options: Options):
    kept_x, kept_w = keep_both(options, x, w, called=("x", "w"), rows="m")
    y = _product(
        kept_x,
        kept_w,
        options.result_dtype,
        options,
        out_sharding=options.out_sharding,
        allow_reshard=options.out_sharding is not None,
        is_kn=not options.w_is_nk,
    )
    return y, (kept_x, kept_w)


def _backward(options: Options, residuals, dy: jax.Array | SymbolicZero):
    if isinstance(dy, SymbolicZero):
        return None, gradient_of(options, residuals[2], residuals[2])
    return _gradients(options, residuals, dy)


# Compiled as one program where jax.grad is called outside of jax.jit.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _gradients(options: Options, residuals, dy: jax.Array):
    x, w, gradient, activation, wanted = residuals
    dw = None
    if not wanted.w:
        dy_bits = keep(quantized_cotangent(options, dy, "m"))
    else:
        dw, dy_bits = _weight_gradient(options, x, dy, gradient, gives_rows=wanted.x)
        dw = gradient_of(options, dw, gradient)
    if dy_bits is None or activation is None:
        return None, dw
    # The operands follow the division of the gradients, which is not theirs to choose.
    dx = _product(
        dy_bits,
        w,
        options.x_dtype,
        options,
        out_sharding=meshes.spec_of(x.bits),
        allow_reshard=True,
        is_kn=options.w_is_nk,
    )
    return activation.gradient(dx), dw


def _weight_gradient(
    options: Options,
    x: Residual,
    dy: jax.Array,
    gradient: jax.Array | None,
    *,
    gives_rows: bool,
) -> tuple[jax.Array, Residual | None]:
    """Returns the gradient of the weight, and dy in FP8, scaled along N, if that is asked for."""
    op = WeightGradient(
        options.op_name,
        cast(np.dtype, options.w_dtype) if gradient is None else gradient.dtype,
        options.implementation,
        options.recipe,
        is_nk=options.w_is_nk,
        gives_rows=gives_rows and options.recipe.rounds_gradients_apart,
    )

    def of(*dy):
        spec = options.gradient_spec
        operands = (x.bits, x.scales, *dy, gradient)
        return apply(op, operands, out_sharding=spec, allow_reshard=True)

    if op.gives_rows:
        dw, values, scales = of(dy, None)
        return dw, keep(BlockScaled(values, scales, checks.ROW_BLOCK))
    rounded = options.recipe.rounds_gradients_once
    rows = keep(quantized_cotangent(options, dy, "m")) if gives_rows or rounded else None
    dw = of(*((rows.bits, rows.scales) if rounded and rows else (dy, None)))
    return dw, rows if gives_rows else None


def gradient_of(options: Options, dw: jax.Array | None, gradient: jax.Array | None):
    """Returns what a backward pass gives for the weight, of its gradient or of the sum."""
    if not options.has_master:
        return dw
    nothing = cast(Any, None)  # of a gradient: zeros
    parts: Any = (dw, nothing, nothing) if gradient is None else (nothing, nothing, dw)
    return MasterWeight(*parts)


_dot.defvjp(_forward, _backward, symbolic_zeros=True)


def _product(
    x: Residual,
    w: Residual,
    result_dtype: np.dtype,
    options: Options,
    *,
    out_sharding: PartitionSpec | None,
    allow_reshard: bool,
    is_kn: bool,
) -> jax.Array:
    """Returns x, with any leading dimensions, times w `(K, N)` if `is_kn`, or `(N, K)`."""
    batch = names("b", x.bits.ndim - 2)
    op = Product(
        options.op_name,
        checks.SQUARE_BLOCK,
        result_dtype,
        options.implementation,
        dtypes=(x.dtype, w.dtype),
        batch_dims=BatchDims(result=batch, lhs=batch),
        rhs_is_kn=is_kn,
        reduce_dtype=options.recipe.reduce_dtype or result_dtype,
    )
    operands = (x.bits, x.scales, w.bits, w.scales, None)
    return apply(op, operands, out_sharding=out_sharding, allow_reshard=allow_reshard)
