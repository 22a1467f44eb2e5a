# SPDX-License-Identifier: Apache-2.0
"""apply: the one way from a public function to its custom call.

The order of wrapping is fixed by what JAX can express::

    derivative rule  >  vmap rule  >  sharding  >  choice of implementation

The primitive whose lowering makes the choice has no rule for batches, derivatives or partitions:
all of that comes before it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jax_fp8gemm._src.transforms import meshes, platforms
from jax_fp8gemm._src.transforms.operation import Operation


# Compiled as one program when called outside of jax.jit, inlined when called inside.
@functools.partial(jax.jit, static_argnames=("op", "out_sharding", "allow_reshard"), inline=True)
def apply(
    op: Operation, operands: tuple, *, out_sharding: Any = None, allow_reshard: bool = False
) -> Any:
    """Returns the results of an operation, sharded as its operands are.

    Args:
        op: What to compute.
        operands: Arrays, None where an optional one is absent.
        out_sharding: PartitionSpec or NamedSharding of the first result in an explicit mesh; None
            for what moves nothing.
        allow_reshard: Whether an operand may move in an explicit mesh; else that raises ValueError.
    """
    sharded = functools.partial(
        meshes.divide, op, out_sharding=out_sharding, allow_reshard=allow_reshard
    )
    batchable = custom_vmap(sharded)

    @batchable.def_vmap
    def batch(axis_size, in_batched, *operands):
        spec = meshes.batched_spec(out_sharding, in_batched, operands)
        again = functools.partial(apply, out_sharding=spec, allow_reshard=allow_reshard)
        once = op.once(in_batched, operands)
        if once is None:
            results = op.batch(again, axis_size, in_batched, operands)
        else:
            results = apply(op, once, out_sharding=out_sharding, allow_reshard=allow_reshard)
        return results, jax.tree.map(lambda _: once is None, results)

    differentiable = jax.custom_jvp(batchable)

    @differentiable.defjvp
    def jvp(primals, tangents):
        return op.jvp(differentiable, primals, tangents)

    return differentiable(*platforms.unify_varying(operands))


def batch_all(axis_size: int, in_batched, operands: tuple, shared: tuple[int, ...] = ()) -> tuple:
    """Returns the operands, each present one with the batch in front but those of `shared`."""
    return tuple(
        x if x is None or is_batched or i in shared else jnp.broadcast_to(x, (axis_size, *x.shape))
        for i, (x, is_batched) in enumerate(zip(operands, in_batched, strict=True))
    )
