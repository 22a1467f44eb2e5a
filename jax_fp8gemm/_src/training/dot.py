# SPDX-License-Identifier: Apache-2.0
"""dot: a layer's product in FP8, with gradients."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled
from jax_fp8gemm._src.training.quantized import Weight, checked_weight, options_of
from jax_fp8gemm._src.training.quantized_activation import Activations, checked_activations
from jax_fp8gemm._src.training.recipe import Recipe, chosen
from jax_fp8gemm._src.training.trained_product import trained_product
from jax_fp8gemm._src.transforms import meshes


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
        out_sharding: How an explicit mesh shards the result, or None to reshard operands along
            K alone, as `x @ w` does.

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
    w = checked_weight(op_name, "w", w)
    checks.matrix(op_name, "w", w)
    w_is_nk = w_is_nk or isinstance(w, BlockScaled)
    extents, k_dim = ("N, K", 1) if w_is_nk else ("K, N", 0)
    checks.same_extent(op_name, operand, w, extents, -1, k_dim, ("x", "w"))
    options = options_of(
        op_name,
        ("x", operand),
        ("w", w),
        preferred_element_type,
        implementation,
        recipe,
        out_sharding,
        w_is_nk,
    )
    return trained_product(operand, w, None, options)
