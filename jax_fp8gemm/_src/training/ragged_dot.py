# SPDX-License-Identifier: Apache-2.0
"""ragged_dot: the product of a mixture of experts in FP8, with gradients, as jax.lax.ragged_dot."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.sharding import NamedSharding, PartitionSpec

from jax_fp8gemm._src.operands import checks, group_checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled
from jax_fp8gemm._src.ops.activation import ActivationOperand
from jax_fp8gemm._src.ops.grouped_gemm import Ragged
from jax_fp8gemm._src.ops.k_grouped_gemm import KGrouped
from jax_fp8gemm._src.ops.quantizer import Operands, Quantizer, RuleQuantizer
from jax_fp8gemm._src.training.dot import (
    checked_weight,
    gradient_of,
    gradient_spec,
    result_dtype_of,
)
from jax_fp8gemm._src.training.master_weight import MasterWeight
from jax_fp8gemm._src.training.quantized import (
    COTANGENT,
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
from jax_fp8gemm._src.training.weight_gradient import GroupedInBfloat16, refuse_shared_sum
from jax_fp8gemm._src.transforms import meshes, platforms
from jax_fp8gemm._src.transforms.apply import apply
from jax_fp8gemm._src.xla import grouped as xla_grouped

_NAME = "ragged_dot"


def ragged_dot(
    lhs: Activations,
    rhs: Weight,
    group_sizes: jax.Array,
    precision: Any = None,
    preferred_element_type: Any = None,
    group_offset: jax.Array | None = None,
    *,
    implementation: str | None = None,
    recipe: Recipe | None = None,
    out_sharding: NamedSharding | PartitionSpec | None = None,
) -> jax.Array:
    """Multiplies groups of rows, each by a weight of its own, in FP8, for training and inference.

    With the arguments of `jax.lax.ragged_dot`. Row t belongs to the group g with
    `sum(group_sizes[:g]) <= t < sum(group_sizes[:g + 1])`::

        y[t]  = Q1(lhs[t]) @ Q2(rhs[g])        and 0 where t >= sum(group_sizes)
        dlhs[t] = Q1(dy[t]) @ Q2(rhs[g]).T
        drhs[g] = Qt(Q1(lhs[rows of g])).T @ Qt(dy[rows of g])

    with Q1, Q2 and Qt and a range as in `dot`; no scale covers two groups. The backward pass keeps
    Q1(lhs) and Q2(rhs), under the names that `dot` gives them.

    Args:
        lhs: `(T, K)`, `bfloat16`, `float16` or `float32`, sorted by group; or what `swiglu`,
            `geglu`, `gelu` and `rms_norm` return; or a `QuantizedActivation`. Rows in no group are
            not read.
        rhs: `(G, K, N)` of one of these dtypes; or a `MasterWeight` of that shape; or the weights
            as `BlockScaled` of shape `(G, N, K)` and block (128, 128), which get no gradient: zero,
            with a warning.
        group_sizes: `(G,)` of any integer dtype, read on the device only, as for `grouped_gemm`;
            with `group_offset`, of at least that many more than `rhs` has groups.
        precision: None or `jax.lax.Precision.DEFAULT`: operands are FP8 and there is no other one.
        preferred_element_type: Dtype of the result; None for the promoted one of the operands.
        group_offset: `()` or `(1,)` integer: `rhs` has the weights of the groups from this one on,
            of all that `group_sizes` has, as where devices divide the experts. Rows of other groups
            give 0. Rows are moved to the front and back, in two more passes. An offset that is
            out of range is clamped; `testing.check_groups` reports it. None for 0.
        implementation: None, "cuda", "xla" or "sim", as for `gemm`.
        recipe: As for `dot`.
        out_sharding: As for `dot`.

    Returns:
        `(T, N)`. Each gradient has the dtype of its operand.

    Raises:
        TypeError: An argument has an unsupported type or dtype; or forward mode is asked for.
        ValueError: Shapes disagree, `precision` is another one or `implementation` is unknown.
        NotImplementedError: As `gemm`.
        jax.errors.JaxRuntimeError: As `gemm`.

    Transformations:
        As `dot`, but T and G must be replicated, as for `grouped_gemm`: expert parallelism goes
        through `jax.shard_map`.

    Example:
        >>> y = ragged_dot(tokens, experts.swapaxes(1, 2), group_sizes)    # (T, K) -> (T, N)
    """
    implementation = checks.implementation(_NAME, implementation)
    checks.default_precision(_NAME, precision)
    operand = checked_activations(_NAME, "lhs", lhs)
    checks.matrix(_NAME, "lhs", operand)
    recipe = chosen(_NAME, recipe)
    rhs, rhs_dtype = checked_weight(_NAME, "rhs", rhs)
    extents, k_dim = ("G, K, N", 1) if rhs_dtype else ("G, N, K", 2)
    checks.groups(_NAME, "rhs", rhs, extents)
    checks.addressable(_NAME, "rhs", rhs.shape)
    checks.addressable(_NAME, "the transpose of rhs", (rhs.shape[0], *rhs.shape[:0:-1]))
    num_groups, k = rhs.shape[0], rhs.shape[k_dim]
    checks.num_groups(_NAME, "rhs", num_groups)
    num_rows, lhs_k = operand.shape
    if lhs_k != k:
        raise ValueError(
            f"{_NAME}: rhs must have shape ({extents}) with the K of lhs = {lhs_k},"
            f" got {tuple(rhs.shape)}."
        )
    first_row = None
    if group_offset is None:
        group_sizes = group_checks.sizes(_NAME, group_sizes, num_rows, num_groups=num_groups)
    else:
        group_sizes, first_row = _groups_from(group_offset, group_sizes, num_rows, num_groups)
        operand = operand.map_rows(lambda rows: jnp.roll(rows, -first_row, 0))
    lhs_dtype = jnp.dtype(operand.dtype)
    options = Options(
        _NAME,
        result_dtype_of(_NAME, preferred_element_type, lhs_dtype, rhs_dtype),
        lhs_dtype,
        rhs_dtype,
        implementation,
        recipe,
        meshes.explicit_spec(_NAME, out_sharding, 2, *jax.tree.leaves((operand, rhs))),
        w_is_nk=k_dim == 2,
        has_master=isinstance(rhs, MasterWeight),
        gradient_spec=gradient_spec(_NAME, "rhs", rhs, operand.x),
    )
    out = _apply(*platforms.unify_varying((operand, rhs, group_sizes)), options)
    return out if first_row is None else jnp.roll(out, first_row, 0)


def _groups_from(group_offset, group_sizes, num_rows: int, num_groups: int):
    """Returns the sizes of so many groups from an offset on, and where the first one starts."""
    sizes = group_checks.sizes(_NAME, group_sizes, num_rows)
    if len(sizes) < num_groups:
        raise ValueError(
            f"{_NAME}: group_sizes must have at least the groups of rhs = {num_groups},"
            f" got {len(sizes)}."
        )
    first = group_checks.offset(_NAME, group_offset, len(sizes) - num_groups)
    starts = xla_grouped.starts_of(xla_grouped.running_ends(sizes, num_rows))
    return jax.lax.dynamic_slice_in_dim(sizes, first, num_groups), starts[first]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _ragged_dot(lhs, rhs, group_sizes, options: Options) -> jax.Array:
    return _product_of(lhs, rhs, group_sizes, options)[0]


# Compiled as one program when called outside of jax.jit, inlined when called inside.
_apply = jax.jit(_ragged_dot, static_argnums=3, inline=True)


def _forward(lhs, rhs, group_sizes, options: Options):
    """Returns the product and what the backward pass needs.

    Both operands in FP8, the sizes, a sum to add to, what lhs is an activation of, and which
    gradients are wanted.
    """
    lhs, rhs, wanted = primals(_NAME, "rhs", lhs, rhs)
    y, kept = _product_of(lhs, rhs, group_sizes.value, options)
    gradient = rhs.gradient if isinstance(rhs, MasterWeight) else None
    return y, (*kept, group_sizes.value, gradient, lhs.residual() if wanted.x else None, wanted)


def _product_of(lhs, rhs: Weight, group_sizes, options: Options):
    kept = keep_both(options, lhs, rhs, called=("lhs", "rhs"), rows="t", group_sizes=group_sizes)
    weights = kept[1] if options.w_is_nk else kept[1].transpose()
    spec = options.out_sharding
    y = _product(
        kept[0], weights, group_sizes, options.result_dtype, options, spec, spec is not None
    )
    return y, kept


@dataclasses.dataclass(frozen=True)
class _ExpertGradients(KGrouped):
    """The gradients of the weights, added to a sum once."""

    def batch(self, apply, axis_size, in_batched, operands):
        refuse_shared_sum(self.op_name, operands[5], in_batched[5])
        return super().batch(apply, axis_size, in_batched, operands)


def _backward(options: Options, residuals, dy: jax.Array | SymbolicZero):
    if isinstance(dy, SymbolicZero):
        return None, gradient_of(options, residuals[3], residuals[3]), None
    return _gradients(options, residuals, dy)


# Compiled as one program where jax.grad is called outside of jax.jit.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _gradients(options: Options, residuals, dy: jax.Array):
    lhs, rhs, group_sizes, gradient, activation, wanted = residuals
    drhs = None
    if wanted.w:
        drhs, dy_rows = _weight_gradients(
            options, lhs, dy, group_sizes, gradient, gives_rows=wanted.x
        )
        drhs = gradient_of(options, drhs, gradient)
    else:
        dy_rows = keep(quantized_cotangent(options, dy, "t", group_sizes))
    if dy_rows is None or activation is None:
        return None, drhs, None
    weights = rhs.transpose() if options.w_is_nk else rhs
    like_lhs = meshes.spec_of(lhs.bits)
    dlhs = _product(dy_rows, weights, group_sizes, options.x_dtype, options, like_lhs, True)
    return _valid_rows(activation, group_sizes).gradient(dlhs), drhs, None


def _weight_gradients(
    options: Options,
    lhs: Residual,
    dy: jax.Array,
    group_sizes: jax.Array,
    gradient: jax.Array | None,
    *,
    gives_rows: bool,
) -> tuple[jax.Array, Residual | None]:
    """Returns the gradients of the weights, and dy in FP8, scaled along N, if that is asked for."""
    result_dtype = cast(np.dtype, options.w_dtype) if gradient is None else gradient.dtype
    static = (options.op_name, result_dtype, options.implementation)
    if options.recipe.weight_gradient == "bfloat16":
        dy_rows = keep(quantized_cotangent(options, dy, "t", group_sizes)) if gives_rows else None
        op = GroupedInBfloat16(*static)
        operands = (lhs.bits, lhs.scales, dy, group_sizes, gradient)
    else:
        dy_rows, dy_columns = _rows_and_columns(options, dy, group_sizes, gives_rows)
        op = _ExpertGradients(*static)
        operands = (*_columns(options, lhs, group_sizes), *dy_columns, group_sizes, gradient)
    drhs = apply(op, operands, out_sharding=options.gradient_spec, allow_reshard=True)
    return drhs, dy_rows


def _valid_rows(activation: ActivationOperand, group_sizes: jax.Array) -> ActivationOperand:
    """Returns the activation with zeros for rows in no group, which may be anything."""

    def valid(rows):
        is_valid = jnp.arange(len(rows)) < xla_grouped.num_valid(group_sizes, len(rows))
        return jnp.where(is_valid.reshape(-1, *(1,) * (rows.ndim - 1)), rows, 0)

    return activation.map_rows(valid)


def _columns(options: Options, rows: Residual, group_sizes: jax.Array) -> tuple[jax.Array, ...]:
    """Returns what was scaled along rows scaled along the rows of each group.

    By powers of two: what had such scales is not rounded again but where it becomes subnormal.
    """
    op = Quantizer(options.op_name, "k_grouped", checks.E4M3, "pow2", options.implementation)
    restored = rows.restore()
    return apply(op, Operands(restored.values, restored.scales, group_sizes))


def _rows_and_columns(
    options: Options, dy: jax.Array, group_sizes: jax.Array, gives_rows: bool
) -> tuple[Residual | None, tuple[jax.Array, ...]]:
    """Returns dy in FP8, scaled along N if asked for, and scaled along the rows of each group."""
    if options.recipe.rounds_gradients_once:
        rows = keep(quantized_cotangent(options, dy, "t", group_sizes))
        return rows if gives_rows else None, _columns(options, rows, group_sizes)
    op = RuleQuantizer(
        options.op_name,
        "rows_and_k_grouped" if gives_rows else "k_grouped",
        options.recipe.gradient_dtype,
        options.recipe.scale_format or "float32",
        options.implementation,
        COTANGENT,
    )
    *columns, values, scales = apply(op, Operands(dy, None, group_sizes))
    if not gives_rows:
        return None, (values, scales)
    return keep(BlockScaled(values, scales, checks.ROW_BLOCK)), tuple(columns)


_ragged_dot.defvjp(_forward, _backward, symbolic_zeros=True)


def _product(
    lhs: Residual,
    rhs: Residual,
    group_sizes: jax.Array,
    result_dtype: np.dtype,
    options: Options,
    out_sharding: PartitionSpec | None,
    allow_reshard: bool,
) -> jax.Array:
    """Returns the rows of each group times the transpose of its weight."""
    op = Ragged(
        options.op_name,
        result_dtype,
        options.implementation,
        reduce_dtype=options.recipe.reduce_dtype or result_dtype,
    )
    rows, weights = lhs.restore(), rhs.restore()
    operands = (rows.values, rows.scales, weights.values, weights.scales, group_sizes)
    return apply(op, operands, out_sharding=out_sharding, allow_reshard=allow_reshard)
