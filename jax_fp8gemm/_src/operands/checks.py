# SPDX-License-Identifier: Apache-2.0
"""Shape, dtype and option rules: one function per rule, each message says rule and value."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_fp8gemm._src.operands.stand_in import StandIn
from jax_fp8gemm._src.tables import MAX_EXTENT, MAX_GROUPS, MAX_NUM_SMS

E4M3 = jnp.dtype(jnp.float8_e4m3fn)
FP8_DTYPES = (E4M3, jnp.dtype(jnp.float8_e5m2))
RESULT_DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16), jnp.dtype(jnp.float32))
ROW_BLOCK = (1, 128)
SQUARE_BLOCK = (128, 128)
BLOCKS = (ROW_BLOCK, SQUARE_BLOCK)
IMPLEMENTATIONS = (None, "cuda", "xla", "sim")
PADDINGS = ("zero", "unspecified")


def _names(dtypes: Sequence[np.dtype]) -> str:
    return ", ".join(dtype.name for dtype in dtypes)


def dtype_of(op_name: str, name: str, value: Any, allowed: Sequence[np.dtype]) -> np.dtype:
    """Returns `value` as a dtype that is one of `allowed`."""
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise TypeError(
            f"{op_name}: {name} must be one of {_names(allowed)}, got {value!r}."
        ) from None
    if dtype not in allowed:
        raise TypeError(f"{op_name}: {name} must be one of {_names(allowed)}, got {dtype.name}.")
    return dtype


def result_dtype(op_name: str, value: Any) -> np.dtype:
    """Returns `preferred_element_type` as a dtype that results may have."""
    return dtype_of(op_name, "preferred_element_type", value, RESULT_DTYPES)


def instance(op_name: str, name: str, value: Any, types: Any, what: str) -> Any:
    """Returns `value`, which is of one of `types`, in words `what`."""
    if not isinstance(value, types):
        raise TypeError(f"{op_name}: {name} must be {what}, got {type(value).__name__}.")
    return value


def is_array(op_name: str, name: str, value: Any) -> None:
    """Checks that `value` is an array, or stands for one."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"{op_name}: {name} must be an array, got {type(value).__name__}.")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{op_name}: {name} must be an array without a mask, got a masked array; fill it, by"
            " its method `filled`."
        )


def array(op_name: str, name: str, value: Any, allowed: Sequence[np.dtype]) -> None:
    """Checks that `value` is an array, or stands for one, of a dtype in `allowed`."""
    is_array(op_name, name, value)
    if value.dtype not in allowed:
        # Of integers, or where float8 is wanted, a cast would seldom be what is meant.
        is_cast = value.dtype == np.float64 and np.dtype(np.float32) in allowed
        names = "float32 or bfloat16" if len(allowed) > 1 else "float32"
        remedy = f"; cast it to {names}" if is_cast else ""
        raise TypeError(
            f"{op_name}: {name} must have dtype {_names(allowed)}, got {value.dtype}{remedy}."
        )


def floating(op_name: str, name: str, value: Any) -> jax.Array:
    """Returns `value` as JAX has it, an array of bfloat16, float16 or float32.

    NumPy's float64 is float32 to JAX, as for every function of JAX, unless 64-bit types are on.
    """
    is_array(op_name, name, value)
    if isinstance(value, StandIn) and value.dtype in RESULT_DTYPES:
        raise TypeError(f"{op_name}: {name} must be an array, got {type(value).__name__}.")
    if value.dtype == np.float64:
        value = jnp.asarray(value)
    array(op_name, name, value, RESULT_DTYPES)
    return jnp.asarray(value)


def number(op_name: str, name: str, value: Any) -> np.float32 | jax.Array:
    """Returns a real number in float32, an array without dimensions included."""
    shape = getattr(value, "shape", None)
    is_real = type(value) in (int, float)
    if shape == ():
        is_real = any(jnp.issubdtype(value.dtype, kind) for kind in (np.integer, np.floating))
    if not is_real:
        of_shape = "" if shape is None else f" of shape {tuple(shape)}"
        raise TypeError(
            f"{op_name}: {name} must be a real number, got {type(value).__name__}{of_shape};"
            " dequantize first."
        )
    return value.astype(np.float32) if isinstance(value, jax.Array) else np.float32(value)


def at_least_2d(op_name: str, name: str, value: Any) -> None:
    """Checks that `value` has rows and columns."""
    if len(value.shape) < 2:
        raise ValueError(
            f"{op_name}: {name} must have shape (..., R, K), got {tuple(value.shape)}."
        )


def block(op_name: str, value: Any, allowed: Sequence[tuple[int, int]] = BLOCKS) -> tuple[int, int]:
    """Returns `value` as a block shape that is one of `allowed`."""
    wanted = " or ".join(map(str, allowed))
    try:
        shape = tuple(operator.index(extent) for extent in value)
    except TypeError:
        raise TypeError(f"{op_name}: block must be {wanted}, got {value!r}.") from None
    for known in allowed:
        if shape == known:
            return known
    raise ValueError(f"{op_name}: block must be {wanted}, got {shape}.")


def scales_shape(shape: Sequence[int], block_shape: tuple[int, int]) -> tuple[int, ...]:
    """Returns the shape of the scales of values of `shape` for `block_shape`."""
    *lead, rows, columns = shape
    return (*lead, -(-rows // block_shape[0]), -(-columns // block_shape[1]))


def scales_fit(op_name: str, name: str, values: Any, scales: Any, block_shape) -> None:
    """Checks that there is one scale per block of the values."""
    wanted = scales_shape(values.shape, block_shape)
    if tuple(scales.shape) != wanted:
        raise ValueError(
            f"{op_name}: {name} must have shape {wanted} for values of shape {tuple(values.shape)}"
            f" and block {block_shape}, got {tuple(scales.shape)}."
        )


def matrix(op_name: str, name: str, value: Any) -> None:
    """Checks that an operand has no leading dimensions."""
    if len(value.shape) != 2:
        raise ValueError(
            f"{op_name}: {name} must be a matrix, got shape {tuple(value.shape)};"
            " use jax.vmap over leading dimensions."
        )
    addressable(op_name, name, value.shape)


def is_static(shape: Sequence[int]) -> bool:
    """Says whether the extents are numbers, not the symbols of `jax.export.symbolic_shape`."""
    return all(isinstance(extent, int) for extent in shape)


def addressable(op_name: str, name: str, shape: Sequence[int]) -> None:
    """Checks that the kernels can address a matrix, or matrices whose rows lie one below another.

    TMA counts rows and columns in 32 bits, and so do the kernels.
    """
    if not is_static(shape):
        return  # no kernel takes it
    *lead, columns = shape
    if max(math.prod(lead), columns) > MAX_EXTENT:
        raise ValueError(
            f"{op_name}: {name} must have at most {MAX_EXTENT} rows in all, and at most as many"
            f" columns, got shape {tuple(shape)}."
        )


def has_shape(op_name: str, name: str, value: Any, extents: str, wanted: tuple[int, ...]) -> None:
    """Checks that `value` has the shape `wanted`, whose extents messages call `extents`."""
    if tuple(value.shape) != wanted:
        raise ValueError(
            f"{op_name}: {name} must have shape ({extents}) = {wanted}, got {tuple(value.shape)}."
        )


def same_extent(
    op_name: str,
    lhs: Any,
    rhs: Any,
    extents: str,
    dim: int = -1,
    rhs_dim: int = -1,
    names: tuple[str, str] = ("lhs", "rhs"),
) -> None:
    """Checks that a dimension of rhs, of which messages say `extents`, is as long as one of lhs."""
    if lhs.shape[dim] != rhs.shape[rhs_dim]:
        raise ValueError(
            f"{op_name}: {names[1]} must have shape ({extents}) with the"
            f" {extents.split(', ')[rhs_dim]} of {names[0]} = {lhs.shape[dim]}, got"
            f" {tuple(rhs.shape)}."
        )


def same_shape(op_name: str, name: str, value: Any, other_name: str, other: Any) -> None:
    """Checks that `value` has the shape of another array."""
    if tuple(value.shape) != tuple(other.shape):
        raise ValueError(
            f"{op_name}: {name} must have the shape of {other_name} = {tuple(other.shape)}, got"
            f" {tuple(value.shape)}."
        )


def groups(op_name: str, name: str, value: Any, extents: str) -> None:
    """Checks that an operand has one leading dimension, of groups."""
    if len(value.shape) != 3:
        raise ValueError(
            f"{op_name}: {name} must have shape ({extents}), got {tuple(value.shape)};"
            " use jax.vmap over further dimensions."
        )


def num_groups(op_name: str, name: str, number: int) -> None:
    """Checks that the kernels can tell so many groups apart."""
    if number > MAX_GROUPS:
        raise ValueError(
            f"{op_name}: {name} must have at most {MAX_GROUPS} groups, got {number};"
            " split them over several calls."
        )


def accumulator(
    op_name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype, extents: str = "M, N"
) -> None:
    """Checks that an accumulator has the result's shape and dtype."""
    array(op_name, "accumulator", value, (dtype,))
    has_shape(op_name, "accumulator", value, extents, shape)


def implementation(op_name: str, value: Any) -> str | None:
    """Returns `value`, one of the implementations."""
    instance(op_name, "implementation", value, str | None, "a str or None")
    if value not in IMPLEMENTATIONS:
        raise ValueError(f"{op_name}: implementation must be in {IMPLEMENTATIONS}, got {value!r}.")
    return value


def extent(op_name: str, name: str, value: Any, least: int, most: int | None = None) -> int:
    """Returns `value` as an int from `least` to `most`."""
    rule = f"an int from {least} to {most}" if most is not None else f"an int of at least {least}"
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{op_name}: {name} must be {rule}, got {value!r}.")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{op_name}: {name} must be {rule}, got {value!r}.") from None
    if number < least or (most is not None and number > most):
        raise ValueError(f"{op_name}: {name} must be {rule}, got {number}.")
    return number


def num_sms(op_name: str, value: Any) -> int | None:
    """Returns `value`, a count of SMs or None for all of them."""
    return None if value is None else extent(op_name, "num_sms", value, 1, MAX_NUM_SMS)


def one_of(op_name: str, name: str, value: Any, allowed: Sequence[str]) -> str:
    """Returns `value`, one of the strings `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{op_name}: {name} must be one of {tuple(allowed)}, got {value!r}.")
    return value


def promoted(*dtypes: np.dtype) -> np.dtype:
    """Returns the dtype that holds all of them, whatever jax_numpy_dtype_promotion is."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(jnp.promote_types(*dtypes))


def default_precision(op_name: str, value: Any) -> None:
    """Checks that no precision is asked for that float8 operands cannot have."""
    default = (None, lax.Precision.DEFAULT, "default", "fastest")
    if not all(each in default for each in (value if isinstance(value, tuple) else (value,))):
        raise ValueError(f"{op_name}: precision must be None or DEFAULT, got {value!r}.")
