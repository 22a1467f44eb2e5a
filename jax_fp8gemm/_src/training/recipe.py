# SPDX-License-Identifier: Apache-2.0
"""Recipe: what a trained product computes in, where the default is not what one wants."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.ops.quantizer import SCALE_FORMATS

_WEIGHT_GRADIENTS = ("fp8", "bfloat16")
_REDUCE_DTYPES = checks.RESULT_DTYPES + checks.FP8_DTYPES


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Formats of a product that is trained: `dot`, `dot_general` and `ragged_dot`.

    Without arguments, what these functions do by default. docs/models.md has a table of what each
    choice costs and how far its gradients are from those in float32.

    Args:
        gradient_dtype: Dtype of the gradients that arrive, before they are multiplied:
            `float8_e4m3fn`, or `float8_e5m2` with 15 more powers of two of range in a block and
            half the precision.
        scale_format: None for powers of two for activations and float32 for the rest; or "float32"
            or "pow2" for all. With "float32" the weight gradient reads activations that are
            rounded twice, to scales along tokens that stay powers of two. With "pow2" and gradients
            in e4m3 it reads those that were rounded for dx, so that devices that have to exchange
            them do so once, in FP8.
        weight_gradient: "fp8", or "bfloat16" to multiply the activations as they were rounded to
            FP8 by the gradients as they arrive, in XLA's bfloat16 product. The result has the dtype
            of the weight either way, as JAX wants; `MasterWeight.accumulate_into` has another.
        reduce_dtype: Dtype in which devices add up partial results and gradients: `float32`,
            `bfloat16`, `float16`, or None for the dtype of what is summed, the result's or the
            operand's. Each addition rounds once to it. Or an FP8 dtype, in which devices send each
            other what they add up in float32: half the bytes of bfloat16; each partial result is
            rounded once with a scale per 1x128, and so is a sum that all devices need.

    Raises:
        TypeError: A dtype is none of the above.
        ValueError: Another argument is none of the above.

    Transformations:
        None: it holds no arrays. Equal recipes are equal keys of JAX's caches.

    Example:
        >>> wide = Recipe(gradient_dtype=jnp.float8_e5m2, reduce_dtype=jnp.float32)
        >>> y = dot(activations, weight.T, recipe=wide)
    """

    gradient_dtype: Any = jnp.float8_e4m3fn
    scale_format: str | None = None
    weight_gradient: str = "fp8"
    reduce_dtype: Any = None

    @property
    def rounds_gradients_once(self) -> bool:
        """Whether both backward products read the same rounded gradients.

        Scaled by powers of two, e4m3 values are not rounded again where they are scaled along
        tokens, but where they become subnormal.
        """
        is_e4m3 = self.gradient_dtype == jnp.float8_e4m3fn
        return is_e4m3 and self.scale_format == "pow2" and self.weight_gradient == "fp8"

    def __post_init__(self):
        """Validates, and makes equal what means the same."""
        name = "Recipe"
        dtype = checks.dtype_of(name, "gradient_dtype", self.gradient_dtype, checks.FP8_DTYPES)
        object.__setattr__(self, "gradient_dtype", dtype)
        if self.scale_format is not None:
            checks.one_of(name, "scale_format", self.scale_format, SCALE_FORMATS)
        checks.one_of(name, "weight_gradient", self.weight_gradient, _WEIGHT_GRADIENTS)
        if self.reduce_dtype is not None:
            dtype = checks.dtype_of(name, "reduce_dtype", self.reduce_dtype, _REDUCE_DTYPES)
            object.__setattr__(self, "reduce_dtype", dtype)


DEFAULT = Recipe()
# Part of the key of JAX's caches: a function that was traced under another recipe is traced anew.
_in_use = jax.make_user_context(None)


@contextlib.contextmanager
def use_recipe(recipe: Recipe) -> Iterator[Recipe]:
    """Sets the recipe of the products inside a `with` that are not given one of their own.

    For models whose layers call the products themselves. Functions of `jax.jit` are traced anew
    where the recipe is another one than before.

    Args:
        recipe: The recipe.

    Returns:
        A context manager, whose value is the recipe.

    Raises:
        TypeError: `recipe` is not a Recipe.

    Transformations:
        The recipe is taken where a product is traced, and so for the gradients of that product.

    Example:
        >>> with use_recipe(Recipe(weight_gradient="bfloat16")):
        ...     y = dot(activations, weight.T)
    """
    with _in_use(checks.instance("use_recipe", "recipe", recipe, Recipe, "a Recipe")):
        yield recipe


def chosen(op_name: str, recipe: Recipe | None) -> Recipe:
    """Returns the recipe given, or else the one in use."""
    if recipe is None:
        return _in_use.value or DEFAULT
    return checks.instance(op_name, "recipe", recipe, Recipe, "a Recipe")
