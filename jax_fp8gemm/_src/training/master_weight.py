# SPDX-License-Identifier: Apache-2.0
"""MasterWeight: a weight beside its quantized form, so that it is quantized once for many uses."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled, checked_pair
from jax_fp8gemm._src.operands.stand_in import StandIn, exported
from jax_fp8gemm._src.ops.quantize import quantize
from jax_fp8gemm._src.ops.quantizer import Operands
from jax_fp8gemm._src.ops.quantizer import validated as validated_quantizer
from jax_fp8gemm._src.training.collectives import Collective, all_gather
from jax_fp8gemm._src.training.recipe import Recipe, chosen
from jax_fp8gemm._src.training.residuals import keep
from jax_fp8gemm._src.transforms.meshes import spec_of
from jax_fp8gemm._src.transforms.partitioner import entries
from jax_fp8gemm._src.xla.part import axis_names

_NAME = "MasterWeight"


@exported
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MasterWeight(StandIn):
    """A weight in floating point, its quantized form, and where its gradients add up, if anywhere.

    `dot`, `dot_general` and `ragged_dot` take one where they take the weight: products read the
    quantized form, and gradients go to the master, bit by bit as with the master alone. What reads
    one weight often, such as microbatches, so quantizes it once. With `gradient`, the kernel that
    computes the weight's gradient adds it to that array in float32: `jax.grad` returns the sum as
    the gradient's `gradient`, and zeros as its `master`. JAX adds up the gradients of all uses of
    an argument, and those of a use that is skipped are zero: exactly one product, once and
    unconditionally, may read a weight with a `gradient`.

    Args:
        master: `(K, N)`, `(G, K, N)` or as `dot_general` takes it; `bfloat16`, `float16` or
            `float32`.
        quantized: `BlockScaled` of the same shape with block (128, 128).
        gradient: float32 of the same shape, or None.

    Raises:
        Nothing: the products check that the parts fit together, by TypeError and ValueError.

    Transformations:
        A pytree: it passes through every transformation of JAX.

    Example:
        >>> w = MasterWeight.quantize(weight.T)            # (K, N)
        >>> loss = lambda w, x: dot(x, w).astype(jnp.float32).mean()
        >>> add = lambda sum, x: (jax.grad(loss)(w.accumulate_into(sum), x).gradient, None)
        >>> dw, _ = jax.lax.scan(add, jnp.zeros(w.shape), activations[None])
    """

    _leaf = "master"

    master: jax.Array
    quantized: BlockScaled
    gradient: jax.Array | None = None

    @classmethod
    def quantize(
        cls, w: jax.Array, *, implementation: str | None = None, recipe: Recipe | None = None
    ) -> "MasterWeight":
        """Returns a weight beside what the products make of it.

        Args:
            w: As `master`.
            implementation: None, "cuda", "xla" or "sim", as for `quantize`.
            recipe: As for the products, for the format of the scales.

        Raises:
            TypeError: `w` has an unsupported dtype.
            ValueError: As `quantize`.
        """
        w = checks.floating(_NAME, "w", w)
        scale_format = chosen(_NAME, recipe).scale_format or "float32"
        options = {"scale_format": scale_format, "implementation": implementation}
        return cls(w, quantize(jax.lax.stop_gradient(w), (128, 128), **options))

    @classmethod
    def all_gather(
        cls,
        w: jax.Array,
        axis_name: Any,
        *,
        axis: int = 0,
        implementation: str | None = None,
        recipe: Recipe | None = None,
    ) -> "MasterWeight":
        """Returns the whole weight under `jax.shard_map`, where each device has a part of it.

        Devices exchange the quantized parts, and in the backward pass the gradient's sums, by one
        reduce-scatter; where parts begin or end inside a block of 128, the largest magnitudes of
        blocks too, in plain JAX whatever `implementation` is. No product reads the whole master, so
        that `jax.jit` leaves out its gathering.

        Args:
            w: One device's part; all have the same shape.
            axis_name: Mesh axis, or several, over which the parts lie.
            axis: Dimension along which they lie.
            implementation: As in `quantize`.
            recipe: As in `quantize`, and for the dtype of the gradient's sums.

        Raises:
            TypeError: `w` has an unsupported dtype.
            ValueError: `w` has no such dimension; or its parts cut blocks, and an explicit mesh
                shards them.
        """
        w = checks.floating(_NAME, "w", w)
        checks.at_least_2d(_NAME, "w", w)
        axis = checks.extent(f"{_NAME}.all_gather", "axis", axis, -w.ndim, w.ndim - 1) % w.ndim
        recipe = chosen(_NAME, recipe)
        how = Collective(_NAME, axis_names(axis_name), axis, recipe, implementation)
        whole = all_gather(w, how)
        if axis < w.ndim - 2 or w.shape[axis] % 128 == 0:
            part = keep(cls.quantize(w, implementation=implementation, recipe=recipe).quantized)
            return cls(whole, how.gathered(part).restore())
        if any(entries(spec := spec_of(w), w.ndim)):
            raise ValueError(
                f"{_NAME}.all_gather: w must not be sharded by axes of an explicit mesh where its"
                f" parts cut blocks of 128, as {w.shape[axis]} along axis {axis} does, got {spec};"
                " make all axes of the mesh manual."
            )
        scale_format = recipe.scale_format or "float32"
        op = validated_quantizer(_NAME, "blocks", checks.E4M3, scale_format, implementation)
        cut = {op.axes[axis - w.ndim]: how.mesh_axes}
        leaves = op.local_of_cut(cut, *Operands(jax.lax.stop_gradient(w)))
        part = keep(BlockScaled.tree_unflatten(checks.SQUARE_BLOCK, leaves))
        return cls(whole, dataclasses.replace(part, bits=how.gathered(part.bits)).restore())

    def accumulate_into(self, gradient: jax.Array) -> "MasterWeight":
        """Returns the weight with an array that the gradient of its one use is added to.

        Args:
            gradient: float32, of the shape of the master.
        """
        return dataclasses.replace(self, gradient=gradient)


def validated(op_name: str, name: str, w: MasterWeight) -> MasterWeight:
    """Returns the weight, whose parts fit together."""
    master, quantized = checked_pair(
        op_name, name, "master", w.master, w.quantized, checks.SQUARE_BLOCK
    )
    if w.gradient is not None:
        checks.array(op_name, f"{name}.gradient", w.gradient, (jnp.dtype(jnp.float32),))
        checks.same_shape(op_name, f"{name}.gradient", w.gradient, "the master", master)
    return MasterWeight(master, quantized, w.gradient)
