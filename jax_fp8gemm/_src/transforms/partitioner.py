# SPDX-License-Identifier: Apache-2.0
"""Chooses how operations are sharded among devices, for automatic and explicit meshes alike."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import PartitionSpec

from jax_fp8gemm._src.transforms.operation import Dims, Layout, axis_of, sizes_of

Axes = tuple[str, ...]  # of a mesh


class Partition(NamedTuple):
    """How an operation is sharded.

    Attributes:
        axes: Mesh axes of each axis.
        reduced: Mesh axes that the first result is summed over.
        scattered: Mesh axes over which the sum is scattered, by axis of the first result.
        cut: Axes whose blocks lie on several devices, each of which has all of their scales.
    """

    axes: Mapping[str, Axes]
    reduced: Axes
    scattered: Mapping[str, Axes]
    cut: frozenset[str] = frozenset()

    def operand_specs(self, layout: Layout) -> tuple[PartitionSpec, ...]:
        """Returns how present operands are sharded; one that is added to a sum, as the result."""
        every = enumerate(layout.operands)
        return tuple(self._spec(dims, i in layout.added) for i, dims in every if dims is not None)

    def result_specs(self, layout: Layout) -> tuple[PartitionSpec, ...]:
        """Returns how the results are sharded."""
        return tuple(self._spec(dims, i == 0) for i, dims in enumerate(layout.results))

    def _spec(self, dims: Dims, after_sum: bool) -> PartitionSpec:
        every = []
        for dim in dims:
            axes = self.axes.get(axis_of(dim), ())
            if axis_of(dim) in self.cut and "/" in dim:
                axes = ()
            if after_sum:
                axes += self.scattered.get(axis_of(dim), ())
            every.append(axes or None)
        return PartitionSpec(*every)


def entries(spec: Any, ndim: int) -> list[Axes]:
    """Returns the mesh axes of each dimension of a PartitionSpec."""
    every = [() if e is None or e is PartitionSpec.UNCONSTRAINED else e for e in spec or ()]
    every = [e if isinstance(e, tuple) else (e,) for e in every]
    return every + [()] * (ndim - len(every))


class _Partitioner:
    """Chooses the partition of one operation.

    Without `allow_reshard` it raises ValueError where an operand would move along an axis of the
    result.
    """

    def __init__(
        self, op_name: str, layout: Layout, sizes, mesh_sizes, operand_specs, allow_reshard
    ):
        self.op_name, self.layout = op_name, layout
        self.sizes, self.mesh_sizes = sizes, mesh_sizes
        self.allow_reshard = allow_reshard
        self.cut: set[str] = set()
        # Mesh axes by operand and axis. Scales follow their values.
        self.given = {
            name: {dim: e for dim, e in zip(dims, entries(spec, len(dims)), strict=True) if e}
            for name, dims, spec in zip(layout.names, layout.operands, operand_specs, strict=True)
            if dims is not None
        }

    def refuse(self, text: str) -> None:
        if not self.allow_reshard:
            remedy = "give out_sharding if the function has it, or use jax.sharding.reshard first"
            raise ValueError(f"{self.op_name}: {text}; {remedy}.")

    def of_operands(self, axis: str) -> Axes:
        """Returns the mesh axes over which the operands have an axis sharded."""
        every = {name: given[axis] for name, given in self.given.items() if axis in given}
        if axis in self.layout.replicated:
            for name, axes in every.items():
                self.refuse(f"{name} must not be sharded along {axis.upper()}, got {axes}")
            return ()
        if len(set(every.values())) > 1:
            self.refuse(f"operands must be sharded alike along {axis.upper()}, got {every}")
        return next(iter(every.values()), ())

    def fitting(self, axis: str, axes: Axes, *, or_gather: bool = False) -> Axes:
        """Returns the most of the mesh axes that an axis can be sharded over."""
        unit = self.layout.unit(axis)
        for count in range(len(axes), 0, -1):
            shards = math.prod(self.mesh_sizes[a] for a in axes[:count])
            if shards == 1 or self.sizes[axis] % (unit * shards) == 0:
                return axes[:count]
            if axis in self.layout.can_cut and self.sizes[axis] % shards == 0:
                self.cut.add(axis)
                return axes[:count]
            if or_gather:
                continue
            blocks = f" into whole blocks of {unit}" if unit > 1 else ""
            self.refuse(
                f"{axis.upper()} = {self.sizes[axis]} cannot be sharded among {shards} devices"
                f" (mesh axes {axes[:count]}){blocks}"
            )
        return ()

    def moves(self, axis: str, mesh_axis: str) -> bool:
        """Says whether a sum over a mesh axis would move an operand sharded along another axis."""
        present = [dims for dims in self.layout.operands if dims is not None]
        for dims, given in zip(present, self.given.values(), strict=True):
            others = [axes for dim, axes in given.items() if dim != axis and "/" not in dim]
            if axis in dims and any(mesh_axis in axes for axes in others):
                return True
        return False

    def summed_over(self, axis: str) -> Axes:
        """Returns the mesh axes that an axis is summed over; over others operands are gathered."""
        axes = self.of_operands(axis)
        moved = (count for count, a in enumerate(axes) if self.moves(axis, a))
        return self.fitting(axis, axes[: next(moved, None)], or_gather=True)

    def partition(self, asked: Mapping[str, Axes]) -> Partition:
        """Returns the partition that gives the results the mesh axes `asked`, where it can."""
        axes = {axis: self.summed_over(axis) for axis in self.layout.contracted()}
        reduced = tuple(dict.fromkeys(a for chosen in axes.values() for a in chosen))
        every = dict.fromkeys(axis_of(d) for dims in self.layout.results for d in dims)
        of_results = [axis for axis in every if axis not in axes]
        given = {axis: self.of_operands(axis) for axis in of_results}
        scattered: dict[str, Axes] = {}
        used: set[str] = set(reduced)
        # What must not change goes first, and so gets the mesh axes that two axes want.
        first = asked if self.allow_reshard else given
        for axis in sorted(of_results, key=lambda axis: not first.get(axis)):
            target = asked.get(axis, ())
            moves = target[: len(given[axis])] != given[axis]
            if not target or (moves and not self.allow_reshard):
                target = given[axis]
            # Mesh axes that the sum is over can only scatter it, behind all others.
            before_sum = tuple(a for a in target if a not in reduced)
            after_sum = target[len(before_sum) :]
            unused = tuple(a for a in before_sum if a not in used)
            if unused != before_sum and set(before_sum) - set(unused) & set(given[axis]):
                self.refuse(f"mesh axes {before_sum} shard {axis.upper()} and another dimension")
            axes[axis] = () if axis in self.layout.replicated else self.fitting(axis, unused)
            shards = math.prod(self.mesh_sizes[a] for a in target)
            # No operand has the extent of an axis that only results have: no sum scatters it.
            if after_sum and target == axes[axis] + after_sum and self.sizes[axis] % shards == 0:
                scattered[axis] = after_sum
            used |= {*axes[axis], *scattered.get(axis, ())}
        return Partition(axes, reduced, scattered, frozenset(self.cut))


def partition_of(
    op_name: str,
    layout: Layout,
    shapes: Sequence[tuple[int, ...] | None],
    mesh_sizes: Mapping[str, int],
    operand_specs: Sequence[Any],
    result_specs: Sequence[Any] = (),
    *,
    allow_reshard: bool,
) -> Partition:
    """Returns how an operation on operands of the given shapes and PartitionSpecs is sharded.

    Axes of the results stay sharded as they are in the operands, and nothing moves. Contracted axes
    that both operands have sharded alike cost one sum over their mesh axes, scattered where the
    result is to be sharded over those. Whatever would split a unit, or needs one mesh axis for two
    axes, is not sharded.

    Args:
        op_name: Public name of the operation, for messages.
        layout: Its dimensions.
        shapes: Of the operands, None where one is absent.
        mesh_sizes: Devices along each mesh axis.
        operand_specs: PartitionSpec of each operand.
        result_specs: PartitionSpec that each result is to have.
        allow_reshard: Whether an operand may move; else that raises ValueError.
    """
    asked: dict[str, Axes] = {}
    for dims, spec in zip(layout.results, result_specs, strict=False):
        for dim, entry in zip(dims, entries(spec, len(dims)), strict=True):
            if entry and "/" not in dim:
                asked.setdefault(dim, entry)
    sizes = sizes_of(layout, shapes)
    chooser = _Partitioner(op_name, layout, sizes, mesh_sizes, operand_specs, allow_reshard)
    return chooser.partition(asked)


@functools.cache
def names(prefix: str, count: int) -> tuple[str, ...]:
    """Returns names for so many axes."""
    return tuple(f"{prefix}{i}" for i in range(count))
