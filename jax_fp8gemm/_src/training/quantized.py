# SPDX-License-Identifier: Apache-2.0
"""What the products that are trained quantize: activations, weights, and gradients that arrive."""

import warnings
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled
from jax_fp8gemm._src.ops.activation import ActivationOperand, Computed
from jax_fp8gemm._src.ops.quantizer import KINDS, Operands, RuleQuantizer
from jax_fp8gemm._src.training.master_weight import MasterWeight
from jax_fp8gemm._src.training.quantized_activation import Quantized
from jax_fp8gemm._src.training.recipe import Recipe
from jax_fp8gemm._src.training.residuals import Residual, Wanted, keep
from jax_fp8gemm._src.transforms.apply import apply

COTANGENT = "the cotangent"  # in messages
# Names of what the backward pass needs, for jax.checkpoint_policies.save_only_these_names.
ACTIVATION_NAME, WEIGHT_NAME = "fp8_activation", "fp8_weight"


class Options(NamedTuple):
    """The static part of a call."""

    op_name: str
    result_dtype: np.dtype
    x_dtype: np.dtype
    w_dtype: np.dtype | None  # None for a weight that came quantized
    implementation: str | None
    recipe: Recipe
    out_sharding: PartitionSpec | None = None
    w_is_nk: bool = False
    has_master: bool = False
    gradient_spec: PartitionSpec | None = None  # of the weight, in an explicit mesh


Weight = jax.Array | BlockScaled | MasterWeight


def quantized(
    options: Options,
    x: jax.Array | Computed,
    block: tuple[int, int],
    *,
    group_sizes: jax.Array | None = None,
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
        kind, operands = KINDS[block], Operands(x, None, group_sizes)
    op = RuleQuantizer(
        options.op_name, kind, dtype, scale_format, options.implementation, name, axes
    )
    return BlockScaled.tree_unflatten(block, apply(op, operands))


def keep_both(
    options: Options,
    x: ActivationOperand,
    w: Weight,
    *,
    called: tuple[str, str],
    rows: str,
    group_sizes: jax.Array | None = None,
) -> tuple[Residual, Residual]:
    """Returns activations `(..., K)` and the weights in FP8, for both passes.

    Messages call them as `called` says, and the rows of the activations `rows`. Rows in no group
    are zeros, but of a QuantizedActivation.
    """
    x_name, w_name = called
    x_axes, w_axes = (rows, "k"), ("n", "k") if options.w_is_nk else ("k", "n")
    if isinstance(x, Computed):
        x_rows = quantized(
            options,
            x,
            checks.ROW_BLOCK,
            group_sizes=group_sizes,
            name=x_name,
            axes=x_axes,
            scale_format="pow2",
        )
    else:
        x_rows = cast(Quantized, x).bits
    kept_x = keep(x_rows, ACTIVATION_NAME)
    if isinstance(w, BlockScaled):
        return kept_x, keep(w)
    if isinstance(w, MasterWeight):
        return kept_x, keep(w.quantized)
    w_blocks = quantized(options, w, checks.SQUARE_BLOCK, name=w_name, axes=w_axes)
    return kept_x, keep(w_blocks, WEIGHT_NAME)


def quantized_cotangent(
    options: Options, dy: jax.Array, rows: str, group_sizes: jax.Array | None = None
) -> BlockScaled:
    """Returns the gradient that arrives in FP8, scaled along N; rows in no group are zeros."""
    return quantized(
        options,
        dy,
        checks.ROW_BLOCK,
        group_sizes=group_sizes,
        name=COTANGENT,
        axes=(rows, "n"),
        dtype=options.recipe.gradient_dtype,
    )


def primals(op_name: str, w_name: str, x, w) -> tuple[ActivationOperand, Weight, Wanted]:
    """Returns the operands of a forward pass, and which of their gradients are asked for.

    Warns if one is that of bits.
    """
    x, wants_x = _primal(x)
    w, wants_w = _primal(w)
    if isinstance(w, BlockScaled) and wants_w:
        warnings.warn(
            f"{op_name}: {w_name} is a BlockScaled, which has no gradient: zeros take its place."
            " For the gradient of the array that it was made of, give the array itself, or a"
            " MasterWeight, which holds both; for none, use jax.lax.stop_gradient on it.",
            stacklevel=2,
        )
    return x, w, Wanted(wants_x, wants_w and not isinstance(w, BlockScaled))


def _primal(operand) -> tuple[Any, bool]:
    leaves, structure = jax.tree.flatten(operand, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    values = structure.unflatten([leaf.value for leaf in leaves])
    return values, any(leaf.perturbed for leaf in leaves)
