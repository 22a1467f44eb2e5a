# SPDX-License-Identifier: Apache-2.0
"""apply: the one way from a public function to its custom call.

An operation is one equation of a program until that is lowered: a primitive with a rule for
derivatives, one for batches, and one for its lowering. That shards the operation among the devices
that the program runs on, and what one of them computes is another primitive, whose lowering chooses
the implementation.
"""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_fp8gemm._src.transforms import meshes, platforms
from jax_fp8gemm._src.transforms.operation import Operation, result_avals

_operation_p = Primitive("fp8_operation")
_operation_p.multiple_results = True


def apply(
    op: Operation, operands: tuple, *, out_sharding: Any = None, allow_reshard: bool = False
) -> Any:
    """Returns the results of an operation, sharded as its operands are.

    Args:
        op: What to compute.
        operands: Arrays, None where an optional one is absent.
        out_sharding: PartitionSpec of the first result in an explicit mesh; None for the one that
            needs no resharding.
        allow_reshard: Whether an operand may be resharded in an explicit mesh; else that raises
            ValueError.
    """
    if not any(isinstance(x, Tracer) for x in operands):
        is_disabled = jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
        with jax.disable_jit(False) if is_disabled else contextlib.nullcontext():
            return _program(op, operands, out_sharding=out_sharding, allow_reshard=allow_reshard)
    op.check_extents(*operands)
    operands = platforms.unify_varying(operands)
    arrays, structure = jax.tree.flatten(operands)
    types, results = jax.tree.flatten(op.result_types(*operands))
    leaves = _operation_p.bind(
        *arrays,
        op=op,
        structure=structure,
        types=tuple(types),
        shardings=meshes.result_shardings(op, operands, out_sharding, allow_reshard),
        out_sharding=out_sharding,
        allow_reshard=allow_reshard,
        partitioned=meshes.partitioned_program() if meshes.is_partitioned(op, operands) else None,
    )
    return results.unflatten(leaves)


# Outside of jax.jit an operation is a program of its own.
_program = jax.jit(apply, static_argnames=("op", "out_sharding", "allow_reshard"), inline=True)


@_operation_p.def_impl
def _impl(*arrays, op, structure, out_sharding, allow_reshard, **_):
    operands = structure.unflatten(arrays)
    return jax.tree.leaves(
        apply(op, operands, out_sharding=out_sharding, allow_reshard=allow_reshard)
    )


@_operation_p.def_abstract_eval
def _abstract_eval(first, *_, types, shardings, **static):
    return result_avals(first, types, shardings)


# Outside of jax.jit the rules are programs too.
@functools.partial(jax.jit, static_argnames=("op", "structure"), inline=True)
def _with_tangents(primals, tangents, *, op, structure):
    both = op.jvp(structure.unflatten(primals), structure.unflatten(tangents))
    return tuple(map(jax.tree.leaves, both))


def _jvp(primals, tangents, *, op, structure, **_):
    tangents = list(map(ad.instantiate_zeros, tangents))
    return _with_tangents(primals, tangents, op=op, structure=structure)


ad.primitive_jvps[_operation_p] = _jvp


@functools.partial(
    jax.jit,
    static_argnames=("axis_size", "in_batched", "op", "structure", "out_sharding", "allow_reshard"),
    inline=True,
)
def _of_batch(arrays, *, axis_size, in_batched, op, structure, out_sharding, allow_reshard):
    operands, in_batched = structure.unflatten(arrays), structure.unflatten(in_batched)
    once = op.once(in_batched, operands)
    if once is None:
        spec = meshes.batched_spec(out_sharding, in_batched, operands)
        again = functools.partial(apply, out_sharding=spec, allow_reshard=allow_reshard)
        results = op.batch(again, axis_size, in_batched, operands)
    else:
        results = apply(op, once, out_sharding=out_sharding, allow_reshard=allow_reshard)
    return jax.tree.leaves(results)


def _batch(arrays, dims, *, types, shardings, partitioned, **static):
    pairs = list(zip(arrays, dims, strict=True))
    axis_size = next(x.shape[dim] for x, dim in pairs if dim is not None)
    fronts = [x if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in pairs]
    in_batched = tuple(dim is not None for dim in dims)
    results = _of_batch(fronts, axis_size=axis_size, in_batched=in_batched, **static)
    # What was computed once has no batch.
    return results, [0 if x.ndim > t.ndim else None for x, t in zip(results, types, strict=True)]


batching.primitive_batchers[_operation_p] = _batch


def _sharded(*arrays, op, structure, types, shardings, out_sharding, allow_reshard, partitioned):
    operands = structure.unflatten(arrays)
    if partitioned is not None:
        return meshes.partitioned(op, operands)
    if shardings is not None:
        return meshes.sharded(op, operands, out_sharding, allow_reshard)
    return jax.tree.leaves(op.local(*operands))


def _lowering(ctx, *arrays, partitioned, **static):
    # Of one device, or under jax.shard_map, where it may have been traced elsewhere.
    context = ctx.module_context.axis_context
    if getattr(context, "num_devices", None) == 1 or getattr(context, "manual_axes", None):
        partitioned = None
    mesh = ctx.avals_in[0].sharding.mesh
    lower = mlir.lower_fun(_sharded, multiple_results=True)
    with jax.sharding.use_abstract_mesh(mesh) if mesh.manual_axes else contextlib.nullcontext():
        return lower(ctx, *arrays, partitioned=partitioned, **static)


# Equal operations are one function of the program.
mlir.register_lowering(_operation_p, _lowering, inline=False)


def batch_all(axis_size: int, in_batched, operands: tuple, shared: tuple[int, ...] = ()) -> tuple:
    """Returns the operands, each present one with the batch in front but those of `shared`."""
    return tuple(
        x if x is None or is_batched or i in shared else jnp.broadcast_to(x, (axis_size, *x.shape))
        for i, (x, is_batched) in enumerate(zip(operands, in_batched, strict=True))
    )
