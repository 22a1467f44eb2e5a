# SPDX-License-Identifier: Apache-2.0
"""Grouped: what products of groups share; and how a batch of them becomes one with more groups."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_fp8gemm._src.native import calls
from jax_fp8gemm._src.native.gemm_problem import problem_of
from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled, Operand, as_block_scaled
from jax_fp8gemm._src.tables import KINDS
from jax_fp8gemm._src.transforms import meshes
from jax_fp8gemm._src.transforms.apply import apply, batch_all
from jax_fp8gemm._src.transforms.operation import Dims, Layout, Operation


@dataclasses.dataclass(frozen=True)
class Grouped(Operation):
    """A product of groups; subclasses say which rows, or columns, are a group.

    `kind` is what the kernels call it, `rhs_block` the block of rhs.

    Operands: values and scales of lhs and rhs, sizes or ids of groups, and for the kind that has
    one an accumulator or None.

    Attributes:
        op_name: As in Operation.
        result_dtype: Dtype of the result.
        implementation: As in Operation.
        num_sms: Most SMs of one launch, or None.
    """

    op_name: str
    result_dtype: np.dtype
    implementation: str | None
    num_sms: int | None = None
    kind: ClassVar[str]
    rhs_block: ClassVar[tuple[int, int]] = checks.SQUARE_BLOCK

    def products(self, *operands) -> jax.Array:
        """Returns the results from plain JAX; no extent is 0."""
        raise NotImplementedError

    def shared(self, in_batched) -> tuple[int, ...]:
        """Returns the positions of operands that a batch shares and need not have each."""
        return () if in_batched[2] or in_batched[3] else (2, 3)

    def can_fold(self, operands: tuple) -> bool:
        """Says whether one call can compute a batch; as many groups as there are weights by it."""
        return operands[2].ndim == 3 or math.prod(operands[2].shape[:2]) <= checks.MAX_GROUPS

    def fold(self, apply: Callable, operands: tuple) -> jax.Array:
        """Returns the results of a batch by one call of `apply(op, operands)`."""
        raise NotImplementedError

    def check_extents(self, *operands) -> None:
        for x in jax.tree.leaves(operands):
            if not checks.is_static(x.shape):
                raise NotImplementedError(
                    f"{self.op_name}: shapes of groups must be numbers, got {tuple(x.shape)}."
                )

    def xla(self, *operands) -> jax.Array:
        if not self.is_empty(*operands):
            return self.products(*operands)
        lhs_values = operands[0]
        if (accumulator := _accumulator(operands)) is not None:
            return accumulator
        shape = self.result_types(*operands).shape
        return lax.full_like(lhs_values, 0, self.result_dtype, shape)

    def kernel(self, *operands, backend: str, **fields) -> jax.Array:
        *factors, group_data = operands[:5]
        accumulator = _accumulator(operands)
        groups = factors[2] if KINDS[self.kind].has_group_weights else group_data
        problem = problem_of(
            self.kind,
            factors,
            rhs_block=self.rhs_block,
            result_dtype=self.result_dtype,
            accumulate=accumulator is not None,
            num_groups=len(groups),
            **fields,
        )
        options = {"num_sms": self.num_sms, "backend": backend}
        out = calls.matmul(problem, factors, group_data, accumulator, **options)
        return out.reshape(self.result_types(*operands).shape)

    def batch(self, apply, axis_size, in_batched, operands):
        # Merged with another dimension, a sharded batch would have to be gathered.
        if meshes.mesh_of(*operands).explicit_axes:
            return apply(Batches(self, (tuple(in_batched),)), operands)
        operands = batch_all(axis_size, in_batched, operands, self.shared(in_batched))
        if not self.can_fold(operands):
            return lax.map(lambda each: apply(self, each), operands)
        return self.fold(apply, operands)


@dataclasses.dataclass(frozen=True)
class Batches(Operation):
    """Batches of grouped products in an explicit mesh: each device folds what it has.

    Attributes:
        op: The operation that there are batches of.
        batches: Of each batch, the innermost first, which operands have it in front.
    """

    op: Grouped
    batches: tuple[tuple[bool, ...], ...]

    # Fields of other operations. Overriding them is safe: all are frozen, and nothing sets a field.
    @property
    def op_name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.op.op_name

    @property
    def result_dtype(self) -> np.dtype:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.op.result_dtype

    def layout(self, *operands) -> Layout:
        layout = self.op.layout(*operands)
        for i, in_batched in enumerate(self.batches):
            layout = layout.batched(f"batch{i}", in_batched)
        return layout

    def local(self, *operands):
        function = lambda *operands: apply(self.op, operands)  # noqa: E731
        for in_batched in self.batches:
            function = jax.vmap(function, [0 if each else None for each in in_batched])
        return function(*operands)

    def partial_sum(self) -> "Batches":
        return dataclasses.replace(self, op=self.op.partial_sum())

    def sum_quantizer(self):
        return self.op.sum_quantizer()

    def batch(self, apply, axis_size, in_batched, operands):
        batches = (*self.batches, tuple(in_batched))
        return apply(dataclasses.replace(self, batches=batches), operands)


def _accumulator(operands: tuple) -> jax.Array | None:
    return operands[5] if len(operands) > 5 else None


def options(
    op_name: str, preferred_element_type: Any, implementation: str | None, num_sms: int | None
) -> tuple[str, np.dtype, str | None, int | None]:
    """Returns the validated fields of Grouped."""
    return (
        op_name,
        checks.result_dtype(op_name, preferred_element_type),
        checks.implementation(op_name, implementation),
        checks.num_sms(op_name, num_sms),
    )


def weights(op_name: str, lhs: BlockScaled, rhs: Operand) -> BlockScaled:
    """Returns the validated `(G, N, K)` weights of a grouped product with lhs."""
    rhs = as_block_scaled(op_name, "rhs", rhs, (checks.SQUARE_BLOCK,))
    checks.groups(op_name, "rhs", rhs, "G, N, K")
    checks.addressable(op_name, "rhs", rhs.shape)
    checks.num_groups(op_name, "rhs", rhs.shape[0])
    checks.same_extent(op_name, lhs, rhs, "G, N, K")
    return rhs


def rows_layout(
    rows: Dims, group_data: Dims, name: str, *, replicated: Dims, units: tuple = ()
) -> Layout:
    """Returns the layout of a product of rows that belong to groups, as the operand `name` says."""
    return Layout(
        operands=(
            (*rows, "k"),
            (*rows, "k/128"),
            ("g", "n", "k"),
            ("g", "n/128", "k/128"),
            group_data,
        ),
        results=((*rows, "n"),),
        names=("lhs", "lhs scales", "rhs", "rhs scales", name),
        replicated=replicated,
        can_cut=("n", "k"),
        units=units,
    )


def fold_ids(ids: jax.Array, num_groups: int) -> jax.Array:
    """Returns groups of a batch, `(B, T)`, as groups of all batches together; -1 where none."""
    first = jnp.arange(ids.shape[0], dtype=jnp.int32)[:, None] * num_groups
    return jnp.where((ids >= 0) & (ids < num_groups), ids + first, -1)


def fold_rows(
    apply: Callable, ragged: Grouped, ids: jax.Array, operands: Sequence[jax.Array]
) -> jax.Array:
    """Returns the products of a batch of rows in any order as one call: sorted by group, and back.

    Args:
        apply: `apply(op, operands)`.
        ragged: What computes groups back to back.
        ids: `(B, T)` the group of each row; another number where it has none and gives zeros.
        operands: `(B, T, K)` values and scales of the rows; values and scales of the weights,
            `(G, N, K)` or `(B, G, N, K)`.

    Returns:
        `(B, T, N)`.
    """
    *rows, rhs_values, rhs_scales = operands
    num_groups, n, _ = rhs_values.shape[-3:]
    if rhs_values.ndim == 4:
        ids = fold_ids(ids, num_groups)
        rhs_values, rhs_scales = (lax.collapse(x, 0, 2) for x in (rhs_values, rhs_scales))
        num_groups = rhs_values.shape[0]
    shape = (*ids.shape, n)
    ids = jnp.where((ids >= 0) & (ids < num_groups), ids, num_groups).reshape(-1)
    source = jnp.argsort(ids, stable=True).astype(jnp.int32)
    target = jnp.zeros_like(source).at[source].set(jnp.arange(len(ids), dtype=jnp.int32))
    sizes = jnp.zeros_like(ids, shape=(num_groups,)).at[ids].add(1, mode="drop")
    rows = [lax.collapse(x, 0, 2)[source] for x in rows]
    return apply(ragged, (*rows, rhs_values, rhs_scales, sizes))[target].reshape(shape)
