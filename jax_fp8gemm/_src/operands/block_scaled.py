# SPDX-License-Identifier: Apache-2.0
"""BlockScaled: float8 values with one float32 scale per block, as one pytree."""

import dataclasses
import math
from collections.abc import Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jax_fp8gemm._src.operands import block_index, checks
from jax_fp8gemm._src.operands.stand_in import StandIn, exported
from jax_fp8gemm._src.xla import gemm as xla_gemm
from jax_fp8gemm._src.xla.part import Part, axis_names


# A dataclass for those who print or copy one by its fields, such as Flax Linen's `tabulate`.
@exported
@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(init=False, repr=False, eq=False)
class BlockScaled(StandIn):
    """A float8 array with one float32 scale per block of its last two dimensions.

    It represents the array of shape `(..., R, K)` given by::

        dequantized[..., r, k] = values[..., r, k] * scales[..., r // block[0], k // block[1]]

    in float32, where numbers below 2**-126, of the scales too, may count as 0. The last block of
    rows or columns may be partial. An instance is immutable. It is a pytree whose leaves are
    `values` and `scales`, in that order, and whose `block` is static. The constructor validates;
    rebuilding a pytree never does, so that JAX may put tracers, shardings or None in the leaves.

    What an array can do and a scale per block allows is exact, and raises where it would not be:

    * `w[index]` of leading dimensions, and of rows with block (1, 128), as of any array: integers,
      also traced ones, slices, integer arrays, None. In a dimension with blocks, slices from a
      multiple of the block to another or to the end. At least two dimensions remain.
    * `w.mT`, and `w.T` of a matrix, with block (128, 128).
    * `2 * w`, `w * 2`, `w / 2`, `-w`: a real number, also a traced one, changes the scales alone,
      which are rounded to float32: not at all for a power of two in range.
    * `len(w)`, and iteration over the first dimension where there are more than two.
    * `concatenate` and `stack`.

    `jax.tree.map` over the leaves is not exact: joined or cut, they say something else wherever
    their blocks do not line up, and a factor would be applied twice.

    Args:
        values: `(..., R, K)`, `float8_e4m3fn` or `float8_e5m2`.
        scales: `(..., ceil(R / block[0]), ceil(K / block[1]))` `float32` multipliers, never
            reciprocals.
        block: `(1, 128)` or `(128, 128)`.

    Raises:
        TypeError: `values`, `scales` or `block` has the wrong type or dtype.
        ValueError: `values` has less than two dimensions, `block` is another block, or `scales`
            has another shape; an index, or a transpose, would cut or turn a block.
        IndexError: An integer is out of range, or there are too many indices or too few dimensions
            left.

    Transformations:
        A pytree: it passes through every transformation of JAX. Explicit meshes follow it as they
        follow its leaves.

    Example:
        >>> weight = BlockScaled(values, scales, block=(128, 128))  # as checkpoints store it
        >>> weight.dequantize().shape == weight.shape
        True
        >>> (0.5 * weight[128:]).mT.shape                           # of the last 32 rows
        (256, 32)
    """

    __slots__ = ("block", "scales", "values")
    _leaf = "values"
    __array_ufunc__ = None  # NumPy's numbers leave products to this class

    values: jax.Array
    scales: jax.Array
    block: tuple[int, int]

    def __init__(self, values: Any, scales: Any, block: tuple[int, int]):
        """Validates and holds the three."""
        op_name = "BlockScaled"
        block = checks.block(op_name, block)
        checks.array(op_name, "values", values, checks.FP8_DTYPES)
        checks.array(op_name, "scales", scales, (jnp.dtype(jnp.float32),))
        checks.at_least_2d(op_name, "values", values)
        checks.scales_fit(op_name, "scales", values, scales, block)
        self._fill(values, scales, block)

    def _fill(self, values: Any, scales: Any, block: Any) -> None:
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "scales", scales)
        object.__setattr__(self, "block", block)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses: an instance is immutable."""
        raise AttributeError(f"BlockScaled is immutable: cannot set {name!r}.")

    def __delattr__(self, name: str) -> None:
        """Refuses: an instance is immutable."""
        raise AttributeError(f"BlockScaled is immutable: cannot delete {name!r}.")

    def __reduce__(self):
        """Pickles and copies through unflattening, which does not validate."""
        return type(self).tree_unflatten, (self.block, (self.values, self.scales))

    def __repr__(self) -> str:
        """Names the leaves and the block."""
        return f"BlockScaled(values={self.values!r}, scales={self.scales!r}, block={self.block})"

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in (self.values, self.scales))

    @property
    def sharding(self) -> jax.sharding.Sharding:
        """Sharding of the values; one for the scales too, unless it cuts blocks."""
        return self.values.sharding

    @property
    def mT(self) -> "BlockScaled":  # noqa: N802 (as arrays have it)
        """The array with its last two dimensions swapped; ValueError with block (1, 128)."""
        if self.block[0] != self.block[1]:
            raise ValueError(
                f"BlockScaled: transposition needs block {checks.SQUARE_BLOCK}, got {self.block};"
                " use quantize_transposed on what was quantized, or dequantize first."
            )
        return self._of(self.values.swapaxes(-1, -2), self.scales.swapaxes(-1, -2))

    @property
    def T(self) -> "BlockScaled":  # noqa: N802 (as arrays have it)
        """The transpose of a matrix; ValueError with block (1, 128)."""
        if self.ndim != 2:
            raise ValueError(
                f"BlockScaled: T is of matrices, got shape {self.shape}; use mT for the last two"
                " dimensions."
            )
        return self.mT

    def _of(self, values: Any, scales: Any) -> "BlockScaled":
        return type(self).tree_unflatten(self.block, (values, scales))

    def __getitem__(self, index: Any) -> "BlockScaled":
        """Returns a part in whole blocks; the class says which."""
        of_values, of_scales = block_index.of_leaves(self.shape, self.block, index)
        return self._of(self.values[of_values], self.scales[of_scales])

    def __len__(self) -> int:
        """Extent of the first dimension."""
        return self.shape[0]

    def __iter__(self) -> Iterator["BlockScaled"]:
        """Iterates over the first dimension; rows of a matrix are no arrays of this class."""
        if self.ndim == 2:
            raise TypeError(
                f"BlockScaled: iteration needs a leading dimension, got shape {self.shape};"
                " dequantize first, or take values and scales."
            )
        return (self[i] for i in range(len(self)))

    def __mul__(self, number: Any) -> "BlockScaled":
        """Returns the product with a real number."""
        return self._of(self.values, self.scales * checks.number("BlockScaled", "factor", number))

    __rmul__ = __mul__

    def __truediv__(self, number: Any) -> "BlockScaled":
        """Returns the quotient by a real number."""
        return self._of(self.values, self.scales / checks.number("BlockScaled", "divisor", number))

    def __neg__(self) -> "BlockScaled":
        """Returns the negative, by negative scales."""
        return self._of(self.values, -self.scales)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """Refuses: values without their scales mean nothing."""
        raise TypeError("BlockScaled is no plain array; use dequantize() to make it one.")

    def dequantize(self, dtype: Any = jnp.float32) -> jax.Array:
        """Returns the dequantized array: the product in float32, then rounded to `dtype`.

        Args:
            dtype: A floating-point dtype.

        Returns:
            `(..., R, K)` array of `dtype`.

        Raises:
            TypeError: `dtype` is not a floating-point dtype.
        """
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"BlockScaled.dequantize: dtype must be a floating-point dtype, got {dtype!r}."
            )
        scales = _unsharded_if_partial(self.values.shape, self.scales, self.block)
        return _dequantize(self.values, scales, self.block).astype(dtype)

    def with_own_scales(self, axis_name: Any, *, axis: int) -> "BlockScaled":
        """Returns one device's part, under `jax.shard_map`, that came with the scales of the whole.

        So it comes where shards begin or end inside a block: values are sharded, and scales are
        not, as `checkpoint.load` and `quantize` place them.

        Args:
            axis_name: Mesh axis, or several, over which the values lie.
            axis: Dimension along which they lie, one of the last two.

        Returns:
            The part with the scales of its own blocks, as products take it.

        Raises:
            TypeError: `axis` is not an int.
            ValueError: `axis` is another dimension, or the parts neither are of whole blocks nor
                lie inside one, as those of 176 rows do not; in an automatic or explicit mesh
                products take them too.
        """
        op_name = "BlockScaled.with_own_scales"
        axis = checks.extent(op_name, "axis", axis, -self.ndim, self.ndim - 1) % self.ndim
        if axis < self.ndim - 2:
            raise ValueError(f"{op_name}: axis must be one of the last two, got {axis}.")
        extent = self.block[axis - self.ndim]
        part = Part(self.shape[axis], extent, axis_names(axis_name))
        if not part.is_frame:
            raise ValueError(
                f"{op_name}: parts along dimension {axis} must be whole blocks of {extent} or lie"
                f" inside one, got {part.size} on each device; use an automatic or explicit mesh."
            )
        if self.scales.shape[axis] != part.num_blocks:
            raise ValueError(
                f"{op_name}: scales must be those of all {part.num_blocks} blocks along dimension"
                f" {axis}, got shape {tuple(self.scales.shape)}."
            )
        return self._of(self.values, part.own(self.scales, axis))

    def tree_flatten_with_keys(self):
        """Returns the leaves with their attribute names, and the static block."""
        key = jax.tree_util.GetAttrKey
        return ((key("values"), self.values), (key("scales"), self.scales)), self.block

    def tree_flatten(self) -> tuple[tuple[Any, Any], Hashable]:
        """Returns the leaves and the static block."""
        return (self.values, self.scales), self.block

    @classmethod
    def tree_unflatten(cls, block: Any, leaves: Any) -> "BlockScaled":
        """Rebuilds from leaves of any kind, without validation."""
        self = object.__new__(cls)
        values, scales = leaves
        self._fill(values, scales, block)
        return self


def _unsharded_if_partial(shape: tuple[int, ...], scales: jax.Array, block) -> jax.Array:
    """Returns the scales, whole where an explicit mesh shards those of a partial block.

    Values beside them are sharded elsewhere: 500 rows among 4 devices, 125 and one scale to each.
    """
    sharding = jax.typeof(scales).sharding
    spec = list(sharding.spec)
    partial = [i for i, unit in zip((-2, -1), block, strict=True) if shape[i] % unit]
    if not any(spec[i] for i in partial if spec):
        return scales
    for i in partial:
        spec[i] = None
    return jax.sharding.reshard(scales, jax.sharding.NamedSharding(sharding.mesh, P(*spec)))


_dequantize = jax.jit(xla_gemm.dequantize, static_argnums=2, inline=True)


# What the products take: a plain tuple has the block that fits its shapes.
Operand = BlockScaled | tuple[jax.Array, jax.Array]


def as_block_scaled(
    op_name: str, name: str, operand: Any, blocks: tuple[tuple[int, int], ...]
) -> BlockScaled:
    """Returns a GEMM operand as a validated BlockScaled of one of `blocks`.

    A plain `(values, scales)` has the first of `blocks` that its shapes fit. They fit both only
    with at most one row of values, where both blocks mean the same.
    """
    if isinstance(operand, BlockScaled):
        if operand.block not in blocks:
            wanted = " or ".join(map(str, blocks))
            raise ValueError(f"{op_name}: {name} must have block {wanted}, got {operand.block}.")
        values, scales, block = operand.values, operand.scales, operand.block
    elif isinstance(operand, tuple | list) and len(operand) == 2:
        (values, scales), block = operand, None
    else:
        raise TypeError(
            f"{op_name}: {name} must be a BlockScaled or a (values, scales) tuple,"
            f" got {type(operand).__name__}."
        )
    checks.array(op_name, f"{name} values", values, checks.FP8_DTYPES)
    checks.array(op_name, f"{name} scales", scales, (jnp.dtype(jnp.float32),))
    checks.at_least_2d(op_name, f"{name} values", values)
    if block is None:
        fitting = [b for b in blocks if checks.scales_shape(values.shape, b) == scales.shape]
        block = fitting[0] if fitting else blocks[0]
    checks.scales_fit(op_name, f"{name} scales", values, scales, block)
    return BlockScaled.tree_unflatten(block, (values, scales))


def checked_pair(
    op_name: str, name: str, leaf: str, array: Any, quantized: Any, block: tuple[int, int]
) -> tuple[jax.Array, BlockScaled]:
    """Returns an array and its quantized form, which fit together.

    Args:
        op_name: For messages.
        name: What messages call the two together.
        leaf: Which part of it the array is.
        array: In floating point.
        quantized: Of the same shape.
        block: That `quantized` must have.
    """
    array = checks.floating(op_name, f"{name}.{leaf}", array)
    name = f"{name}.quantized"
    checks.instance(op_name, name, quantized, BlockScaled, "a BlockScaled")
    quantized = as_block_scaled(op_name, name, quantized, (block,))
    checks.same_shape(op_name, name, quantized, f"the {leaf}", array)
    return array, quantized
