# SPDX-License-Identifier: Apache-2.0
"""QuantizedActivation: activations quantized beforehand, whose gradient goes to the array."""

import dataclasses
from typing import Any

import jax

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled, checked_pair
from jax_fp8gemm._src.operands.stand_in import StandIn, exported
from jax_fp8gemm._src.ops.activation import ActivationOperand, Computed, as_activation
from jax_fp8gemm._src.ops.quantize import quantize
from jax_fp8gemm._src.training.collectives import Collective, all_gather
from jax_fp8gemm._src.training.recipe import Recipe, chosen
from jax_fp8gemm._src.training.residuals import keep
from jax_fp8gemm._src.xla.part import axis_names

_NAME = "QuantizedActivation"


@exported
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedActivation(StandIn):
    """Activations in FP8, and the array that their gradient goes to.

    `dot` and `ragged_dot` take one where they take activations. They read the quantized form, and
    of the array only its shape and dtype: what several products read is quantized once, and what
    travels between devices may travel in FP8, with any array of the right shape beside it, as
    examples/expert_parallel.py does. Gradients go to the array, bit by bit as with it alone.

    Args:
        array: `(..., K)`, `bfloat16`, `float16` or `float32`.
        quantized: `BlockScaled` of the same shape, `float8_e4m3fn`, with block (1, 128). With
            scales that are powers of two, as `QuantizedActivation.quantize` gives it, a weight
            gradient rounds it again only where it becomes subnormal.

    Raises:
        Nothing: the products check that the parts fit together, by TypeError and ValueError.

    Transformations:
        A pytree: it passes through every transformation of JAX.

    Example:
        >>> x = QuantizedActivation.quantize(activations)            # (M, K)
        >>> y = dot(swiglu(dot(x, weight.T), dot(x, weight.T)), weight)
    """

    _leaf = "array"

    array: jax.Array
    quantized: BlockScaled

    @classmethod
    def quantize(
        cls,
        x: jax.Array | Computed,
        *,
        implementation: str | None = None,
        recipe: Recipe | None = None,
    ) -> "QuantizedActivation":
        """Returns activations beside what the products make of them.

        Args:
            x: As `array`; or what `swiglu`, `geglu`, `gelu` and `rms_norm` return, for which the
                array is what they compute: where only products read it, `jax.jit` leaves it out.
                Its rows must be finite, those in no group too: gradients pass through them.
            implementation: None, "cuda", "xla" or "sim", as for `quantize`.
            recipe: As for the products, for the format of the scales.

        Raises:
            TypeError: `x` has an unsupported dtype.
            ValueError: As `quantize`.
        """
        x = as_activation(_NAME, "x", x)
        scale_format = chosen(_NAME, recipe).scale_format or "pow2"
        options = {"scale_format": scale_format, "implementation": implementation}
        return cls(x.compute(), quantize(jax.lax.stop_gradient(x), **options))

    @classmethod
    def all_gather(
        cls,
        x: jax.Array | Computed,
        axis_name: Any,
        *,
        axis: int = 0,
        implementation: str | None = None,
        recipe: Recipe | None = None,
    ) -> "QuantizedActivation":
        """Returns the rows of all devices under `jax.shard_map`, where each device has some.

        Devices exchange the quantized rows, and in the backward pass the gradient's sums, by one
        reduce-scatter. No product reads the whole array, so that `jax.jit` leaves out its
        gathering.

        Args:
            x: One device's rows, as in `quantize`.
            axis_name: Mesh axis, or several, over which the rows lie.
            axis: Dimension along which they lie, which is not the last.
            implementation: As in `quantize`.
            recipe: As in `quantize`, and for the dtype of the gradient's sums.

        Raises:
            TypeError: `x` has an unsupported dtype.
            ValueError: `x` has no such dimension, or it is the last.
        """
        x = as_activation(_NAME, "x", x)
        checks.at_least_2d(_NAME, "x", x)
        last = x.ndim - 1
        axis = checks.extent(f"{_NAME}.all_gather", "axis", axis, -x.ndim, last) % x.ndim
        if axis == last:
            raise ValueError(f"{_NAME}.all_gather: axis must not be the last, got {axis}.")
        recipe = chosen(_NAME, recipe)
        how = Collective(_NAME, axis_names(axis_name), axis, recipe, implementation)
        part = cls.quantize(x, implementation=implementation, recipe=recipe)
        return cls(all_gather(part.array, how), how.gathered(keep(part.quantized)).restore())


# What products take for activations.
Activations = jax.Array | Computed | QuantizedActivation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized(ActivationOperand):
    """The parts of a QuantizedActivation, which fit together."""

    x: jax.Array
    quantized: BlockScaled

    def residual(self) -> "Quantized":
        """Returns nothing but the type: the backward pass has the quantized form."""
        return self.gradient(None)

    def gradient(self, dx: Any) -> "Quantized":
        """Returns the gradient, which is the array's."""
        nothing: Any = None  # of a gradient: zeros
        return Quantized(dx, nothing)


def checked_activations(op_name: str, name: str, x: Any) -> ActivationOperand:
    """Returns activations that a product takes, as it computes with them."""
    if isinstance(x, BlockScaled):
        raise TypeError(
            f"{op_name}: {name} is a BlockScaled, which has no gradient; give a"
            " QuantizedActivation, of it and the array that the gradient is to go to."
        )
    if not isinstance(x, QuantizedActivation):
        return as_activation(op_name, name, x)
    array, quantized = checked_pair(op_name, name, "array", x.array, x.quantized, checks.ROW_BLOCK)
    checks.dtype_of(op_name, f"{name}.quantized's dtype", quantized.dtype, (checks.E4M3,))
    return Quantized(array, quantized)
