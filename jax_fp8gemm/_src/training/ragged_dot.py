# SPDX-License-Identifier: Apache-2.0
"""ragged_dot: the product of a mixture of experts in FP8, with gradients, as jax.lax.ragged_dot."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jax_fp8gemm._src.operands import checks, group_checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled
from jax_fp8gemm._src.training.quantized import Weight, checked_weight, options_of
from jax_fp8gemm._src.training.quantized_activation import Activations, checked_activations
from jax_fp8gemm._src.training.recipe import Recipe, chosen
from jax_fp8gemm._src.training.trained_product import trained_product
from jax_fp8gemm._src.transforms import meshes
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
            of all that `group_sizes` has, as where the experts are sharded. Rows of other groups
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
    rhs = checked_weight(_NAME, "rhs", rhs)
    extents, k_dim = ("G, N, K", 2) if isinstance(rhs, BlockScaled) else ("G, K, N", 1)
    checks.groups(_NAME, "rhs", rhs, extents)
    checks.addressable(_NAME, "rhs", rhs.shape)
    checks.addressable(_NAME, "the transpose of rhs", (rhs.shape[0], *rhs.shape[:0:-1]))
    num_rows, num_groups = operand.shape[0], rhs.shape[0]
    checks.num_groups(_NAME, "rhs", num_groups)
    checks.same_extent(_NAME, operand, rhs, extents, rhs_dim=k_dim)
    first_row = None
    if group_offset is None:
        group_sizes = group_checks.sizes(_NAME, group_sizes, num_rows, num_groups=num_groups)
    else:
        group_sizes, first_row = _groups_from(group_offset, group_sizes, num_rows, num_groups)
        operand = operand.map_rows(lambda rows: jnp.roll(rows, -first_row, 0))
    options = options_of(
        _NAME,
        ("lhs", operand),
        ("rhs", rhs),
        preferred_element_type,
        implementation,
        recipe,
        meshes.explicit_spec(_NAME, out_sharding, 2, *jax.tree.leaves((operand, rhs))),
        w_is_nk=k_dim == 2,
    )
    out = trained_product(operand, rhs, group_sizes, options)
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
