# SPDX-License-Identifier: Apache-2.0
"""What lets qwix, tokamax and MaxText multiply by our products; docs/frameworks.md.

Other frameworks need no code of ours. A framework is imported when a function that needs it is
called, never by `import jax_fp8gemm`.
"""

import importlib
import re
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled
from jax_fp8gemm._src.training.dot_general import dot_general
from jax_fp8gemm._src.training.ragged_dot import ragged_dot
from jax_fp8gemm._src.training.recipe import Recipe

_BLOCKS = ((1, 128), (128, 128))
_ROWS_BY_GROUP = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (1,)), ((), ())),
    lhs_ragged_dimensions=(0,),
    rhs_group_dimensions=(0,),
)
# Arguments of MaxText's `gmm` that choose a kernel for TPUs or its tiles, or say which axes vary.
_MAXTEXT_KERNELS = frozenset(
    ("tiling", "interpret", "lhs_vma_axes", "rhs_vma_axes", "use_qwix_quantization")
    + ("use_tokamax_backend", "use_gmm_v2", "use_gmm_v2_heuristic_tiling")
)


def to_qarray(x: BlockScaled) -> Any:
    """Returns an array as qwix has it, of the same values and scales, bit by bit.

    A tile of qwix is a dimension divided by its number of scales, a block of ours is 128 or what is
    left: they are the same where a dimension is a multiple of 128, or has one scale.

    Args:
        x: `(..., R, K)`; as a weight of a product `(N, K)`, which qwix mostly has as `(K, N)`:
            transpose the result.

    Returns:
        `qwix.QArray` of that shape.

    Raises:
        ImportError: qwix is not installed.
        TypeError: `x` is not a BlockScaled.
        ValueError: A dimension ends within a block.

    Example:
        >>> to_qarray(quantize(experts[:, :128], (128, 128))).scale_tile_shape
        (1, 128, 128)
    """
    checks.instance("to_qarray", "x", x, BlockScaled, "a BlockScaled")
    if not _fits(x.shape, x.scales.shape, x.block):
        raise ValueError(
            f"to_qarray: x must have dimensions of whole blocks {x.block}, got {tuple(x.shape)}."
        )
    return importlib.import_module("qwix").QArray(x.values, x.scales)


def from_qarray(x: Any) -> BlockScaled:
    """Returns an array of qwix as the products take it, of the same values and scales, bit by bit.

    Args:
        x: `qwix.QArray` `(..., R, K)` with float8 values and no zero point, in tiles of 1x128 or
            128x128: `qwix.quantize(w, jnp.float8_e4m3fn, tiled_axes={0: 128, 1: 128})` has such.
            Of a weight `(K, N)` of a product, `x.mT`.

    Returns:
        `BlockScaled` of that shape. Scales in a narrower dtype become float32.

    Raises:
        TypeError: Values are not float8.
        ValueError: There is a zero point, or tiles are others.

    Example:
        >>> q = to_qarray(quantize(weight[:128], (128, 128)))
        >>> from_qarray(q).block
        (128, 128)
    """
    if x.zero_point is not None:
        raise ValueError("from_qarray: x must have no zero point, got one.")
    fitting = [block for block in _BLOCKS if x.ndim > 1 and _fits(x.shape, x.scale.shape, block)]
    if not fitting:
        raise ValueError(
            f"from_qarray: x must have tiles of 1x128 or 128x128, got {x.scale_tile_shape}."
        )
    return BlockScaled(x.qvalue, x.scale.astype(jnp.float32), fitting[0])


def _fits(shape: Any, scales_shape: Any, block: tuple[int, int]) -> bool:
    """Returns whether tiles of equal size are blocks."""
    edges = (*[1] * (len(shape) - 2), *block)
    return all(
        extent == edge * tiles or (tiles == 1 and extent <= edge)
        for extent, tiles, edge in zip(shape, scales_shape, edges, strict=True)
    )


def qwix_provider(
    module_path: str, *, recipe: Recipe | None = None, implementation: str | None = None
) -> Any:
    """Returns what lets qwix replace products of a Flax model by those of this package.

    In modules whose path matches, `jax.lax.dot_general`, `jax.numpy.einsum` and
    `jax.lax.ragged_dot` become `dot_general`, the same by an equation, and `ragged_dot`, with
    gradients. The first operand are the activations, the second is the weight.

    Args:
        module_path: Regular expression for the whole path of a module, "blocks/.*/(up|down)" for
            example. It has to leave out attention, if its scores are to stay as they are.
        recipe: As for `dot`.
        implementation: None, "cuda", "xla" or "sim", as for `gemm`.

    Returns:
        A `qwix.QuantizationProvider`, for `qwix.quantize_model`.

    Raises:
        ImportError: qwix is not installed.
        ValueError: `module_path` is no regular expression.

    Example:
        >>> provider = qwix_provider(".*", recipe=Recipe(gradient_dtype=jnp.float8_e5m2))
    """
    try:
        re.compile(module_path)
    except (TypeError, re.error) as error:
        raise ValueError(
            f"qwix_provider: module_path must be a regular expression, got {module_path!r}: {error}"
        ) from error
    qwix = importlib.import_module("qwix")
    options = {"recipe": recipe, "implementation": implementation}

    class Fp8Provider(qwix.QuantizationProvider):
        """Replaces products where the rule matches."""

        def get_intercept_map(self):
            """Returns qwix's own replacements and ours."""
            return super().get_intercept_map() | {
                "jax.lax.dot_general": self._chosen(jax.lax.dot_general, dot_general),
                "jax.lax.ragged_dot": self._chosen(jax.lax.ragged_dot, ragged_dot),
                "jax.numpy.einsum": self._chosen(jnp.einsum, einsum),
            }

        def _chosen(self, original: Callable, ours: Callable) -> Callable:
            def product(*args, **kwargs):
                rule, _ = self._get_current_rule_and_op_id(original.__name__)
                if rule is None:
                    return original(*args, **kwargs)
                return ours(*args, **kwargs, **options)

            return product

    return Fp8Provider([qwix.QuantizationRule(module_path=module_path)])


def einsum(
    subscripts: str,
    *operands: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
    implementation: str | None = None,
    recipe: Recipe | None = None,
) -> jax.Array:
    """Multiplies activations by a weight as `dot_general` does, with arguments of `jnp.einsum`.

    `jnp.einsum(..., _dot_general=dot_general)` may exchange the two, whose scales have other
    blocks.

    Args:
        subscripts: "lhs,rhs->result", with or without "...": batch, contracted and other letters.
        *operands: The activations, `bfloat16`, `float16` or `float32`, and the weight, as
            `dot_general` takes it: a `BlockScaled` too, as "hnk" with its N and K last.
        precision: As for `dot_general`.
        preferred_element_type: As for `dot_general`.
        out_sharding: As for `dot_general`, of a result that has batch letters first, then those of
            the activations, then those of the weight.
        implementation: As for `dot_general`.
        recipe: As for `dot`.

    Returns:
        The product.

    Raises:
        TypeError: As `dot_general`.
        ValueError: `subscripts` are not those of one product of two operands, or the result has
            another order than `out_sharding` needs; or as `dot_general`.

    Transformations:
        As `dot`.

    Example:
        >>> y = einsum("tk,gnk->tgn", tokens, experts)
        >>> heads = quantize(experts, block=(128, 128))    # (H, N, K), a projection of each head
        >>> y = einsum("thk,hnk->thn", jnp.stack([tokens] * len(heads), 1), heads)   # one launch
    """
    if len(operands) != 2:
        raise ValueError(f"einsum: operands must be two in FP8, got {len(operands)}.")
    lhs, rhs, output = _names(subscripts, *(len(x.shape) for x in operands))
    shared = [name for name in lhs if name in rhs]
    batch = [name for name in shared if name in output]
    contracted = [name for name in shared if name not in output]
    kept = [*batch, *(name for name in lhs + rhs if name not in shared)]
    if sorted(kept) != sorted(output) or any(len(set(side)) < len(side) for side in (lhs, rhs)):
        raise ValueError(f"einsum: subscripts must be those of one product, got {subscripts!r}.")
    if out_sharding is not None and kept != list(output):
        raise ValueError(
            f"einsum: out_sharding needs a result ordered as {''.join(kept)!r}, got {subscripts!r}."
        )
    (lhs_k, rhs_k), (lhs_b, rhs_b) = (
        [tuple(map(side.index, names)) for side in (lhs, rhs)] for names in (contracted, batch)
    )
    y = dot_general(
        *operands,
        ((lhs_k, rhs_k), (lhs_b, rhs_b)),
        precision,
        preferred_element_type,
        out_sharding=out_sharding,
        implementation=implementation,
        recipe=recipe,
    )
    return y if kept == list(output) else y.transpose([kept.index(name) for name in output])


def _names(subscripts: str, *ndims: int) -> list[str]:
    """Returns a character for each dimension of two operands and of the result."""
    terms = subscripts.replace(" ", "").replace("->", ",").split(",")
    extra = [ndim - len(term.replace("...", "")) for term, ndim in zip(terms, ndims, strict=False)]
    # Dimensions of an ellipsis are aligned at the last one; Greek letters stand for them.
    ellipses = ["".join(chr(0x3B1 + i) for i in reversed(range(n))) for n in extra]
    ellipses.append(max(ellipses, key=len))
    names = [t.replace("...", e) for t, e in zip(terms, ellipses, strict=False)]
    if len(terms) != 3 or [len(name) for name in names[:2]] != list(ndims):
        raise ValueError(
            "einsum: subscripts must be 'lhs,rhs->result' with a letter for each dimension"
            f" = {ndims}, got {subscripts!r}."
        )
    return names


def tokamax_ragged_dot(
    lhs: jax.Array,
    rhs: Any,
    *,
    group_sizes: Any,
    ragged_dot_dimension_numbers: Any = _ROWS_BY_GROUP,
    precision: Any = None,
    preferred_element_type: Any = None,
    group_offset: jax.Array | None = None,
    activation: Callable[[jax.Array], jax.Array] | None = None,
    implementation: str | None = None,
    recipe: Recipe | None = None,
    **others: Any,
) -> jax.Array:
    """Computes `ragged_dot` as an implementation of tokamax's.

    To be given in a sequence, `tokamax.ragged_dot(..., implementation=[tokamax_ragged_dot])`; of
    several tokamax takes the first that does not raise NotImplementedError.

    Args:
        lhs: `(T, K)`, `bfloat16`, `float16` or `float32`, sorted by group.
        rhs: `(G, K, N)` of one of these dtypes; or a `qwix.QArray` of that shape with float8 values
            in tiles of 128x128, which gets no gradient.
        group_sizes: `(G,)` of any integer dtype, or `tokamax.RaggedDotGroupSizes`.
        ragged_dot_dimension_numbers: Those of `jax.lax.ragged_dot`.
        precision: As for `ragged_dot`.
        preferred_element_type: As for `ragged_dot`.
        group_offset: As for `ragged_dot`.
        activation: Applied to the result in float32, before it is rounded; or None.
        implementation: As for `ragged_dot`; `functools.partial` sets it, as it does the recipe.
        recipe: As for `ragged_dot`.
        **others: `zero_initialize` has no effect: rows in no group are 0. Any other argument must
            be None, False or empty.

    Returns:
        `(T, N)`.

    Raises:
        TypeError, ValueError: As `ragged_dot` and `from_qarray`.
        NotImplementedError: Dimensions are others, `lhs` is a QArray, or one of `others` is set.

    Transformations:
        As `ragged_dot`.

    Example:
        >>> y = tokamax_ragged_dot(tokens, experts.mT, group_sizes=group_sizes)    # (T, N)
    """
    if ragged_dot_dimension_numbers != _ROWS_BY_GROUP:
        raise NotImplementedError(
            "tokamax_ragged_dot: ragged_dot_dimension_numbers must be those of jax.lax.ragged_dot,"
            f" got {ragged_dot_dimension_numbers}."
        )
    _refuse("tokamax_ragged_dot", lhs, others, {"zero_initialize"})
    result_dtype = preferred_element_type or jnp.result_type(lhs.dtype, rhs.dtype)
    y = ragged_dot(
        lhs,
        _experts(rhs),
        getattr(group_sizes, "value", group_sizes),
        precision,
        jnp.float32 if activation else result_dtype,
        group_offset,
        implementation=implementation,
        recipe=recipe,
    )
    return activation(y).astype(result_dtype) if activation else y


def _refuse(name: str, lhs: Any, others: dict[str, Any], without_effect: Collection[str]) -> None:
    """Raises NotImplementedError for rows and arguments that no product of ours has."""
    if hasattr(lhs, "qvalue"):
        raise NotImplementedError(f"{name}: lhs must be an array, got a QArray.")
    for argument, value in others.items():
        if argument not in without_effect and (hasattr(value, "shape") or value):
            raise NotImplementedError(f"{name}: {argument} must not be set, got {value!r}.")


def _experts(rhs: Any) -> Any:
    return from_qarray(rhs.mT) if hasattr(rhs, "qvalue") else rhs


def maxtext_gmm(
    lhs: jax.Array,
    rhs: Any,
    group_sizes: jax.Array,
    preferred_element_type: Any = jnp.float32,
    *,
    group_offset: jax.Array | int | None = None,
    partial_sum: jax.Array | None = None,
    implementation: str | None = None,
    recipe: Recipe | None = None,
    **others: Any,
) -> jax.Array:
    """Computes `ragged_dot` with the arguments of MaxText's `gmm`, to be put in its place.

    Args:
        lhs: `(T, K)`, `bfloat16`, `float16` or `float32`, sorted by group.
        rhs: `(G, K, N)` of one of these dtypes; or a `qwix.QArray` of that shape with float8 values
            in tiles of 128x128, which gets no gradient.
        group_sizes: As for `ragged_dot`; there may be more than `rhs` has groups.
        preferred_element_type: As for `ragged_dot`.
        group_offset: As for `ragged_dot`. None and the number 0 move no rows.
        partial_sum: `(T, N)`, added in float32 before the result is rounded; or None.
        implementation: As for `ragged_dot`; `functools.partial` sets it, as it does the recipe.
        recipe: As for `ragged_dot`. Quantization is this and not that of a rule of qwix.
        **others: What chooses and tiles MaxText's own kernels has no effect. Any other argument
            must be None, False or empty.

    Returns:
        `(T, N)`.

    Raises:
        TypeError, ValueError: As `ragged_dot` and `from_qarray`; or `partial_sum` is not `(T, N)`,
            or `group_offset` is a number out of range.
        NotImplementedError: `lhs` is a QArray, or one of `others` is set.

    Transformations:
        As `ragged_dot`.

    Example:
        >>> y = maxtext_gmm(tokens, experts.mT, group_sizes, group_offset=0)    # (T, N)
    """
    _refuse("maxtext_gmm", lhs, others, _MAXTEXT_KERNELS)
    if isinstance(group_offset, int | np.integer):
        most = max(len(group_sizes) - rhs.shape[0], 0)  # too few sizes are another error
        number = checks.extent("maxtext_gmm", "group_offset", group_offset, 0, most)
        group_offset = jnp.asarray(number) if number else None
    if group_offset is None:
        group_sizes = group_sizes[: rhs.shape[0]]
    result_dtype = preferred_element_type or jnp.result_type(lhs.dtype, rhs.dtype)
    if partial_sum is not None:
        checks.is_array("maxtext_gmm", "partial_sum", partial_sum)
    y = ragged_dot(
        lhs,
        _experts(rhs),
        group_sizes,
        None,
        result_dtype if partial_sum is None else jnp.float32,
        group_offset,
        implementation=implementation,
        recipe=recipe,
    )
    if partial_sum is None:
        return y
    checks.has_shape("maxtext_gmm", "partial_sum", partial_sum, "T, N", y.shape)
    return (y + partial_sum.astype(jnp.float32)).astype(result_dtype)
