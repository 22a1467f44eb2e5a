# SPDX-License-Identifier: Apache-2.0
"""Runs operations sharded among devices, as `partitioner` says, under every kind of mesh.

Automatic meshes: XLA's partitioner asks `partitioner`. Explicit ones: the operands' types say how
they are sharded, and jax.shard_map computes the parts. Manual ones: the caller did it already.
"""

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.transforms import sums
from jax_fp8gemm._src.transforms.operation import Layout, Operation, axis_of, shown_unit, sizes_of
from jax_fp8gemm._src.transforms.partitioner import Partition, entries, partition_of
from jax_fp8gemm._src.transforms.platforms import unify_varying


def mesh_of(*operands: jax.Array | None) -> AbstractMesh:
    """Returns the mesh in use, or else that of the operands' types: `jax.set_mesh` is a choice."""
    mesh = jax.sharding.get_abstract_mesh()
    meshes = (jax.typeof(x).sharding.mesh for x in operands if x is not None)
    return next((m for m in meshes if mesh.empty and m.explicit_axes), mesh)


def _local(op: Operation, partition: Partition, operands: tuple) -> Any:
    """Computes one device's results from what it holds of the operands."""
    op = op.placed(partition.axes)

    def compute(op, operands):
        if not partition.cut:
            return op.local(*unify_varying(operands))
        cut = {axis: partition.axes[axis] for axis in sorted(partition.cut)}
        return op.local_of_cut(cut, *unify_varying(operands))

    if not partition.reduced:
        return compute(op, operands)
    layout = op.layout(*operands)
    summands = tuple(None if i in layout.added else x for i, x in enumerate(operands))
    results = compute(op.partial_sum(), summands)
    total, *others = results if isinstance(results, tuple) else (results,)
    scattered = {layout.results[0].index(axis): a for axis, a in partition.scattered.items()}
    summed = tuple(a for a in partition.reduced if a not in sum(scattered.values(), ()))
    total = sums.add_up(total, summed, scattered, op.sum_quantizer())
    # What is added is the same on all devices that the sum is over.
    total = op.finish(total, *operands)
    return (total, *others) if others else total


def _explicit_partition(
    op: Operation, operands: tuple, out_sharding: Any, allow_reshard: bool
) -> Partition:
    """Reads off the operands' types how an operation is sharded in an explicit mesh."""
    mesh = mesh_of(*operands)
    explicit = frozenset(mesh.explicit_axes)

    def spec_of(x):
        every = entries(jax.typeof(x).sharding.spec, x.ndim)
        return PartitionSpec(*(tuple(a for a in e if a in explicit) or None for e in every))

    return partition_of(
        op.op_name,
        op.layout(*operands),
        [None if x is None else x.shape for x in operands],
        dict(mesh.shape),
        [None if x is None else spec_of(x) for x in operands],
        () if out_sharding is None else (out_sharding,),
        allow_reshard=allow_reshard,
    )


def result_shardings(
    op: Operation, operands: tuple, out_sharding: PartitionSpec | None, allow_reshard: bool
) -> tuple[NamedSharding, ...] | None:
    """Returns how an explicit mesh shards the results; None without one."""
    if not mesh_of(*operands).explicit_axes:
        return None
    partition = _explicit_partition(op, operands, out_sharding, allow_reshard)
    first, *others = partition.result_specs(op.layout(*operands))
    specs = (first if out_sharding is None else out_sharding, *others)
    return tuple(NamedSharding(mesh_of(*operands), spec) for spec in specs)


def sharded(
    op: Operation, operands: tuple, out_sharding: Any, allow_reshard: bool
) -> list[jax.Array]:
    """Returns all results, of which every device of an explicit mesh computes its part."""
    mesh = mesh_of(*operands)
    layout = op.layout(*operands)
    partition = _explicit_partition(op, operands, out_sharding, allow_reshard)
    in_specs = partition.operand_specs(layout)
    present, structure = jax.tree.flatten(operands)

    def local(*present):
        return jax.tree.leaves(_local(op, partition, structure.unflatten(present)))

    first, *others = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=list(partition.result_specs(layout)),
        # All results of one part vary alike, and some of several are the same on each device. JAX
        # does not see that a sum is which devices sent each other in parts.
        check_vma=len(layout.results) == 1 and not op.sum_quantizer(),
        axis_names=frozenset(mesh.explicit_axes),
    )(*(reshard(x, spec, mesh) for x, spec in zip(present, in_specs, strict=True)))
    return [first if out_sharding is None else reshard(first, out_sharding, mesh), *others]


def _parts_are_whole(size: int, unit: int, mesh_sizes: Sequence[int]) -> bool:
    """Says whether an axis sharded evenly over any one mesh axis has whole blocks in each shard."""
    return size > unit and not any(size % n == 0 and size // unit % n for n in mesh_sizes)


def _unnamed_mesh(shaped: jax.ShapeDtypeStruct) -> Mesh:
    """Returns a mesh of all devices of a program that names none.

    That is one under `jax.set_mesh` whose arguments are in no mesh.
    """
    return Mesh(np.array(list(shaped.sharding.devices_indices_map(shaped.shape))), ("device",))


def _spec_on(mesh: Mesh, shaped: jax.ShapeDtypeStruct) -> PartitionSpec:
    """Returns the mesh axes over which something is sharded, as XLA's partitioner describes it.

    Replicated where the shards are uneven, or are over a part of a mesh axis: nothing of this
    module is, but Shardy may cut a mesh axis in two.
    """
    try:
        indices = shaped.sharding.devices_indices_map(shaped.shape)
    except ValueError:  # an extent is no multiple of the devices
        return PartitionSpec()
    every = []
    for dim in range(len(shaped.shape)):
        starts = np.asarray([indices[device][dim].start or 0 for device in mesh.devices.flat])
        starts = starts.reshape(mesh.devices.shape)
        # How far the next device along each mesh axis is; that of the outermost is furthest.
        strides = {
            name: np.take(starts, 1, i).flat[0] - starts.flat[0]
            for i, name in enumerate(mesh.axis_names)
            if mesh.axis_sizes[i] > 1
        }
        every.append(tuple(sorted((a for a in strides if strides[a]), key=lambda a: -strides[a])))
    spec = PartitionSpec(*every)
    same = NamedSharding(mesh, spec).is_equivalent_to(shaped.sharding, len(shaped.shape))
    return spec if same else PartitionSpec()


def _rule(layout: Layout, sizes: Mapping[str, int], mesh: Mesh) -> tuple[str, dict[str, Any]]:
    """Returns the Shardy rule of an operation, and the keyword arguments that go with it."""
    factors: dict[str, int] = {}
    replicated: set[str] = set()

    first, *others = layout.results
    summed = set(layout.contracted())
    # The first result, a sum, and those beside it may be sharded over one mesh axis along different
    # axes: they are not to follow each other.
    apart = [dims for dims in others if any(axis_of(dim) in summed for dim in dims)]
    together = [*layout.operands, first, *(dims for dims in others if dims not in apart)]

    def factor(dim: str, is_apart: bool = False) -> str:
        axis = axis_of(dim)
        # A unit that no dimension shows is the callback's to keep.
        unit = shown_unit(apart if is_apart else together, axis)
        size = sizes.get(axis, 1)
        if is_apart and axis not in summed:
            axis += "_apart"
        block = f"{axis}_block"
        if unit == 1:
            name = axis
        elif size % unit:  # blocks and elements are not sharded alike
            name = axis if "/" not in dim else block
            if name == block or axis not in layout.can_cut:
                replicated.add(name)
        elif not _parts_are_whole(size, unit, mesh.axis_sizes):
            # Where elements can be sharded over a mesh axis and blocks cannot, Shardy would cut
            # that in two, to shard the blocks as far as they go.
            name = axis if "/" not in dim else block
        elif "/" in dim:
            name = block
        else:
            factors[f"{axis}_inner"] = unit
            name = f"({block} {axis}_inner)"
        if axis in layout.replicated:
            replicated.update(name.strip("()").split())
        return name

    def side(every):
        return ", ".join(" ".join(map(factor, dims)) for dims in every if dims is not None)

    results = (" ".join(factor(dim, dims in apart) for dim in dims) for dims in layout.results)
    text = f"{side(layout.operands)} -> {', '.join(results)}"
    contracted = summed - {axis_of(dim) for dims in layout.results for dim in dims}
    # In the order in which they appear, as Shardy wants them.
    names = dict.fromkeys(re.findall(r"\w+", text))
    reduced = [n for n in names if n.removesuffix("_block").removesuffix("_inner") in contracted]
    return text, {
        "reduction_factors": tuple(n for n in reduced if n not in replicated),
        "need_replication_factors": tuple(n for n in names if n in replicated),
        **factors,
    }


def is_partitioned(op: Operation, operands: tuple) -> bool:
    """Says whether XLA's partitioner shards an operation."""
    mesh = mesh_of(*operands)
    has_elements = all(x is None or x.size for x in operands)
    shards_itself = mesh.manual_axes or mesh.explicit_axes or op.is_left_to_xla
    return has_elements and not shards_itself


@functools.cache
def partitioned_program() -> Any:
    """Returns a program with a partitioned call, to be a parameter of an equation.

    JAX tells the devices that a program runs on only to the lowering of certain calls, of which
    partitioned ones are some, wherever in its equations it finds one.
    """
    call = custom_partitioning(lambda x: x)
    call.def_partition(partition=None, sharding_rule="i -> i")
    return jax.make_jaxpr(call)(jax.ShapeDtypeStruct((1,), np.float32))


def partitioned(op: Operation, operands: tuple) -> list[jax.Array]:
    """Returns all results, sharded by XLA's partitioner, which asks ours."""
    layout = op.layout(*operands)
    shapes = [None if x is None else x.shape for x in operands]
    arrays, structure = jax.tree.flatten(operands)

    def whole(*present):
        return jax.tree.leaves(op.local(*structure.unflatten(present)))

    def partition(mesh, arg_shapes, result_shapes):
        if mesh.empty:
            mesh = _unnamed_mesh(arg_shapes[0])
        chosen = partition_of(
            op.op_name,
            layout,
            shapes,
            dict(mesh.shape),
            structure.unflatten(_spec_on(mesh, x) for x in arg_shapes),
            [_spec_on(mesh, x) for x in result_shapes],
            allow_reshard=True,
        )

        def lower(*present):
            # The mesh of the surrounding program is in scope, but here its axes are manual.
            with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
                return jax.tree.leaves(_local(op, chosen, structure.unflatten(present)))

        arguments = tuple(NamedSharding(mesh, spec) for spec in chosen.operand_specs(layout))
        outs = [NamedSharding(mesh, spec) for spec in chosen.result_specs(layout)]
        return mesh, lower, outs, arguments

    def rule(mesh, *_):
        return _rule(layout, sizes_of(layout, shapes), mesh)

    # XLA's cache can only tell partitioned calls apart by what surrounds them: their name.
    digest = hashlib.sha256(repr((layout, op)).encode()).hexdigest()[:16]
    call = custom_partitioning(whole)
    vars(call).update(dict.fromkeys(["__name__", "__qualname__"], f"{op.op_name}_{digest}"))
    # Decoded by JAX before `partition` sees them, shardings over parts of a mesh axis are errors.
    call.def_partition(partition=partition, sharding_rule=rule, decode_shardings=False)
    return jax.jit(call)(*arrays)


def reshard(x: jax.Array, spec: PartitionSpec, mesh: AbstractMesh) -> jax.Array:
    """Returns x sharded in an explicit mesh as a spec says."""
    return jax.sharding.reshard(x, NamedSharding(mesh, spec))


def spec_of(x: jax.Array) -> PartitionSpec | None:
    """Returns how an explicit mesh shards x; None without one."""
    return jax.typeof(x).sharding.spec if mesh_of(x).explicit_axes else None


def batched_spec(
    spec: PartitionSpec | None, in_batched: Sequence[bool], operands: Sequence[Any]
) -> PartitionSpec | None:
    """Returns the spec of a batch of what has a spec, sharded as its operands are."""
    if spec is None:
        return None
    batches = [x for x, is_batched in zip(operands, in_batched, strict=True) if is_batched]
    leads = (entries(spec_of(x), x.ndim)[0] for x in batches if x is not None)
    return PartitionSpec(next((lead for lead in leads if lead), None), *spec)


def explicit_spec(
    op_name: str, out_sharding: Any, ndim: int, *operands: jax.Array
) -> PartitionSpec | None:
    """Returns `out_sharding` of a result as a PartitionSpec, which needs an explicit mesh."""
    if out_sharding is None:
        return None
    types = NamedSharding | PartitionSpec
    checks.instance(
        op_name, "out_sharding", out_sharding, types, "a NamedSharding or a PartitionSpec"
    )
    if not mesh_of(*operands).explicit_axes:
        raise ValueError(
            f"{op_name}: out_sharding needs a mesh with explicit axes, got {out_sharding};"
            " constrain the result with jax.lax.with_sharding_constraint."
        )
    spec = out_sharding.spec if isinstance(out_sharding, NamedSharding) else out_sharding
    known = mesh_of(*operands).explicit_axes
    if len(spec) > ndim or not {a for e in entries(spec, ndim) for a in e} <= set(known):
        raise ValueError(
            f"{op_name}: out_sharding must have at most {ndim} dimensions and explicit axes of the"
            f" mesh, which are {known}, got {spec}."
        )
    return spec
