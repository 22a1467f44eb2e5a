# SPDX-License-Identifier: Apache-2.0
"""Operands of the products that are trained: checked, and quantized; and gradients that arrive."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled, as_block_scaled
from jax_fp8gemm._src.ops.activation import ActivationOperand, Computed
from jax_fp8gemm._src.ops.quantizer import KINDS, Operands, RuleQuantizer
from jax_fp8gemm._src.training import master_weight
from jax_fp8gemm._src.training.master_weight import MasterWeight
from jax_fp8gemm._src.training.quantized_activation import Quantized
from jax_fp8gemm._src.training.recipe import Recipe
from jax_fp8gemm._src.training.residuals import Residual, keep
from jax_fp8gemm._src.transforms import meshes, platforms
from jax_fp8gemm._src.transforms.apply import apply

COTANGENT = "the cotangent"  # in messages
# Names of what the backward pass needs, for jax.checkpoint_policies.save_only_these_names.
ACTIVATION_NAME, WEIGHT_NAME = "fp8_activation", "fp8_weight"


class Options(NamedTuple):
    """The static part of a call."""

    op_name: str
    x_name: str  # of the activations, in messages
    w_name: str  # of the weight, in messages
    result_dtype: np.dtype
    x_dtype: np.dtype
    w_dtype: np.dtype | None  # None for a weight that came quantized
    implementation: str | None
    recipe: Recipe
    out_sharding: PartitionSpec | None
    w_is_nk: bool
    has_master: bool
    gradient_spec: PartitionSpec | None  # of the gradient of w, in an explicit mesh


Weight = jax.Array | BlockScaled | MasterWeight


def checked_weight(op_name: str, name: str, w: Any) -> Weight:
    """Returns the weight, of any of the types that products take."""
    if isinstance(w, BlockScaled):
        return as_block_scaled(op_name, name, w, (checks.SQUARE_BLOCK,))
    if isinstance(w, MasterWeight):
        return master_weight.validated(op_name, name, w)
    return checks.floating(op_name, name, w)


def options_of(
    op_name: str,
    x: tuple[str, ActivationOperand],
    w: tuple[str, Weight],
    preferred_element_type: Any,
    implementation: str | None,
    recipe: Recipe,
    out_sharding: PartitionSpec | None,
    w_is_nk: bool,
) -> Options:
    """Returns the static part of a call; x and w come with what messages call them."""
    (x_name, x_operand), (w_name, weight) = x, w
    x_dtype = jnp.dtype(x_operand.dtype)
    w_dtype = None if isinstance(weight, BlockScaled) else jnp.dtype(weight.dtype)
    if preferred_element_type is None:
        result_dtype = checks.promoted(x_dtype, w_dtype or x_dtype)
    else:
        result_dtype = checks.result_dtype(op_name, preferred_element_type)
    return Options(
        op_name,
        x_name,
        w_name,
        result_dtype,
        x_dtype,
        w_dtype,
        implementation,
        recipe,
        out_sharding,
        w_is_nk,
        has_master=isinstance(weight, MasterWeight),
        gradient_spec=_gradient_spec(op_name, w_name, weight, x_operand.x),
    )


def _gradient_spec(op_name: str, name: str, w: Weight, x: jax.Array) -> PartitionSpec | None:
    """Returns how an explicit mesh shards the gradient: as the array that it goes to."""
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


def _quantized(
    options: Options,
    x: jax.Array | Computed,
    block: tuple[int, int],
    group_sizes: jax.Array | None,
    *,
    name: str,
    axes: tuple[str, str],
    dtype: np.dtype = checks.E4M3,
    scale_format: str = "float32",
) -> BlockScaled:
    """Returns x in FP8, inside a derivative rule; messages call it and its dimensions so."""
    scale_format = options.recipe.scale_format or scale_format
    if isinstance(x, Computed):
        kind, operands = x.kind, x.operands(group_sizes)
    else:
        kind, operands = KINDS[block], Operands(x, group_sizes=group_sizes)
    op = RuleQuantizer(
        options.op_name, kind, dtype, scale_format, options.implementation, name, axes
    )
    return BlockScaled.tree_unflatten(block, apply(op, operands))


def keep_both(
    options: Options, x: ActivationOperand, w: Weight, group_sizes: jax.Array | None
) -> tuple[Residual, Residual]:
    """Returns activations `(..., K)` and the weights in FP8, for both passes.

    Rows in no group are zeros, but of a QuantizedActivation.
    """
    if isinstance(x, Computed):
        x_rows = _quantized(
            options,
            x,
            checks.ROW_BLOCK,
            group_sizes,
            name=options.x_name,
            axes=(_rows(group_sizes), "k"),
            scale_format="pow2",
        )
    else:
        x_rows = cast(Quantized, x).quantized
    kept_x = keep(x_rows, ACTIVATION_NAME)
    if isinstance(w, BlockScaled):
        return kept_x, keep(w)
    if isinstance(w, MasterWeight):
        return kept_x, keep(w.quantized)
    axes = ("n", "k") if options.w_is_nk else ("k", "n")
    w_blocks = _quantized(options, w, checks.SQUARE_BLOCK, None, name=options.w_name, axes=axes)
    return kept_x, keep(w_blocks, WEIGHT_NAME)


def quantized_cotangent(
    options: Options, dy: jax.Array, group_sizes: jax.Array | None
) -> BlockScaled:
    """Returns the gradient that arrives in FP8, scaled along N; rows in no group are zeros."""
    return _quantized(
        options,
        dy,
        checks.ROW_BLOCK,
        group_sizes,
        name=COTANGENT,
        axes=(_rows(group_sizes), "n"),
        dtype=options.recipe.gradient_dtype,
    )


def _rows(group_sizes: jax.Array | None) -> str:
    """Returns what messages call the rows of activations."""
    return "m" if group_sizes is None else "t"
