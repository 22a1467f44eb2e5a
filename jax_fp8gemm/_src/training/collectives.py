# SPDX-License-Identifier: Apache-2.0
"""Collectives by hand, under jax.shard_map, as a Recipe says: those of a sharded layer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled
from jax_fp8gemm._src.ops.quantizer import Operands
from jax_fp8gemm._src.ops.quantizer import validated as validated_quantizer
from jax_fp8gemm._src.training.recipe import Recipe, chosen
from jax_fp8gemm._src.training.residuals import keep
from jax_fp8gemm._src.transforms import sums
from jax_fp8gemm._src.transforms.apply import apply
from jax_fp8gemm._src.xla.part import axis_names


class Collective(NamedTuple):
    """How an array is gathered, or added up: hashable, unlike a call's arguments."""

    op_name: str
    mesh_axes: tuple[str, ...]
    axis: int
    recipe: Recipe
    implementation: str | None

    def quantize(self, dtype: Any, scale_format: str):
        op = validated_quantizer(self.op_name, "rows", dtype, scale_format, self.implementation)
        return lambda x: apply(op, Operands(x))

    def gathered(self, x: Any) -> Any:
        """Returns the leaves of all devices."""
        return jax.tree.map(
            lambda leaf: lax.all_gather(leaf, self.mesh_axes, axis=self.axis, tiled=True), x
        )

    def added_up(self, partial: jax.Array) -> jax.Array:
        """Returns the device's part of the sum."""
        dtype = self.recipe.reduce_dtype or partial.dtype
        quantize = None
        if dtype in checks.FP8_DTYPES:
            quantize, dtype = self.quantize(dtype, "float32"), partial.dtype
        total = sums.scatter(partial.astype(dtype), self.mesh_axes, self.axis, quantize)
        return total.astype(partial.dtype)


def psum_scatter(
    x: jax.Array,
    axis_name: Any,
    *,
    scatter_dimension: int = 0,
    implementation: str | None = None,
    recipe: Recipe | None = None,
) -> jax.Array:
    """Adds up partial results over devices under `jax.shard_map`; each device gets a part.

    What `jax.lax.psum_scatter(x, axis_name, scatter_dimension=..., tiled=True)` computes, in the
    `reduce_dtype` of the recipe. It ends a layer whose sequences are parallel outside of it;
    `QuantizedActivation.all_gather` begins one::

        partial = dot(swiglu(gate, up), w_down)                     # (B, T, K), K sharded
        y = psum_scatter(partial, "d", scatter_dimension=1)         # (B, T / n, K)

    In the backward pass gradients are gathered: in FP8 where the recipe rounds them once
    (`Recipe(scale_format="pow2")`), as `dot` would quantize them behind it.

    Args:
        x: `(..., R, K)`, `bfloat16`, `float16` or `float32`.
        axis_name: Mesh axis, or several, that the sum is over.
        scatter_dimension: Dimension to shard over the n devices, a multiple of n.
        implementation: None, "cuda", "xla" or "sim", as for `quantize`.
        recipe: As for the products.

    Returns:
        The sum in the dtype of x, with an n-th of the extent along `scatter_dimension`. With an FP8
        `reduce_dtype` each partial result is rounded once, with a scale per 1x128 of what a device
        sends to another; sums are in float32.

    Raises:
        TypeError: `x` has an unsupported dtype, or an argument another type.
        ValueError: `x` has fewer than two dimensions, or no such dimension, or one that is no
            multiple of n; or `implementation` is unknown.
        NameError: There is no such mesh axis.

    Transformations:
        `jit`, `grad`, `vjp`, `vmap`, `scan`, `checkpoint`, inside of `shard_map`. `jvp`: TypeError,
        as of every `jax.custom_vjp`.

    Example:
        >>> from jax.sharding import PartitionSpec as P
        >>> mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> layer = lambda x, w: psum_scatter(dot(x, w), "d")
        >>> sharded = jax.shard_map(
        ...     layer, mesh=mesh, in_specs=(P(None, "d"), P("d")), out_specs=P("d")
        ... )
        >>> y = jax.jit(sharded)(activations, weight.T)
    """
    name = "psum_scatter"
    x = checks.floating(name, "x", x)
    checks.at_least_2d(name, "x", x)
    axis = checks.extent(name, "scatter_dimension", scatter_dimension, -x.ndim, x.ndim - 1) % x.ndim
    checks.implementation(name, implementation)
    how = Collective(name, axis_names(axis_name), axis, chosen(name, recipe), implementation)
    count = lax.axis_size(how.mesh_axes)
    if x.shape[axis] % count:
        raise ValueError(
            f"{name}: x must have a multiple of {count} (the devices) along scatter_dimension"
            f" {axis}, got {tuple(x.shape)}."
        )
    return _added_up(x, how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _added_up(x: jax.Array, how: Collective) -> jax.Array:
    return how.added_up(x)


def _added_up_forward(x, how):
    return _added_up(x, how), None


def _added_up_backward(how: Collective, _, gradient: jax.Array):
    is_whole = how.axis < gradient.ndim - 1 or gradient.shape[-1] % 128 == 0
    if not (how.recipe.rounds_gradients_once and is_whole):
        return (how.gathered(gradient),)
    values, scales = how.quantize(how.recipe.gradient_dtype, "pow2")(gradient)
    kept = keep(BlockScaled.tree_unflatten(checks.ROW_BLOCK, (values, scales)))
    most = float(jnp.finfo(gradient.dtype).max)  # a power of two above the largest float16 is past
    whole = how.gathered(kept).restore().dequantize()
    return (jnp.clip(whole, -most, most).astype(gradient.dtype),)


_added_up.defvjp(_added_up_forward, _added_up_backward)


def all_gather(x: jax.Array, how: Collective) -> jax.Array:
    """Returns x gathered along a dimension; its gradient is added up as the recipe says."""
    return _gathered(x, how) if how.recipe.reduce_dtype else how.gathered(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x: jax.Array, how: Collective) -> jax.Array:
    return how.gathered(x)


def _gathered_forward(x, how):
    return _gathered(x, how), None


def _gathered_backward(how: Collective, _, gradient: jax.Array):
    return (how.added_up(gradient),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
