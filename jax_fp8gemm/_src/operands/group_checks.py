# SPDX-License-Identifier: Apache-2.0
"""Sizes and ids of groups: the rule that they obey, and the checked mode.

The checked mode reports those that make no sense, which only a device knows. Its checks are part of
a program only while `active` traces it, so that no other program pays for them.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify, xla_metadata

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.xla import grouped as xla_grouped

_active = contextvars.ContextVar("jax_fp8gemm_group_checks", default=False)


@contextlib.contextmanager
def active() -> Iterator[None]:
    """Adds checks to what is traced inside, for `checkify.checkify` to collect.

    The metadata does nothing but keep what is traced inside apart in the caches of `jax.jit`.
    """
    token = _active.set(True)
    try:
        with xla_metadata.set_xla_metadata(jax_fp8gemm="group_checks"):
            yield
    finally:
        _active.reset(token)


def int32(op_name: str, name: str, value: Any) -> jax.Array:
    """Returns integers of any dtype in int32; those beyond it as the nearest that it has.

    So what is too large stays too large, and what is negative stays so, where a cast would wrap.
    """
    checks.is_array(op_name, name, value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{op_name}: {name} must have an integer dtype, got {value.dtype}.")
    if value.dtype != np.int32:
        # JAX would wrap integers of 64 bits, where these types are off, as soon as it sees them.
        is_known = jax.dtypes.canonicalize_dtype(value.dtype) == value.dtype
        xp = jnp if is_known and isinstance(value, jax.Array) else np
        ours, theirs = jnp.iinfo(np.int32), jnp.iinfo(value.dtype)
        if theirs.max > ours.max:
            value = xp.clip(xp.asarray(value), max(ours.min, int(theirs.min)), ours.max)
        value = value.astype(np.int32)
    return jnp.asarray(value)


def _group_data(
    op_name: str, name: str, value: Any, extents: str, shape: tuple[int, ...] | None = None
) -> jax.Array:
    """Returns sizes or ids of groups in int32, as many as there must be."""
    value = int32(op_name, name, value)
    shape = (value.size,) if shape is None else shape
    checks.has_shape(op_name, name, value, extents, shape)
    return value


def sizes(
    op_name: str, value: Any, limit: int, *, num_groups: int | None = None, align: int = 1
) -> jax.Array:
    """Returns `group_sizes` in int32, as many as there are groups; None for any number of them.

    In the checked mode they must not be negative and, rounded up to `align`, fit in `limit`.
    """
    name = "group_sizes"
    value = _group_data(op_name, name, value, "G,", None if num_groups is None else (num_groups,))
    checks.num_groups(op_name, name, value.size)
    if not _active.get() or not value.size:
        return value
    rounded = jnp.clip(value, 0, limit + 1)
    rounded = rounded + -rounded % align
    fits = xla_grouped.running_ends(rounded, limit + 1)[-1] <= limit
    each = f", each rounded up to a multiple of {align}," if align > 1 else ""
    checkify.debug_check(
        jnp.all(value >= 0) & fits,
        f"{op_name}: {name}{each} must be at least 0 and add up to at most {limit}, got {{value}}.",
        value=value,
    )
    return value


def offset(op_name: str, value: Any, limit: int) -> jax.Array:
    """Returns `group_offset` in int32, `()`; clamped to 0 to `limit`, or checked to be there."""
    name = "group_offset"
    value = int32(op_name, name, value)
    if value.size != 1 or value.ndim > 1:
        raise ValueError(f"{op_name}: {name} must have shape () or (1,), got {value.shape}.")
    value = value.reshape(())
    if _active.get():
        checkify.debug_check(
            (value >= 0) & (value <= limit),
            f"{op_name}: {name} must be from 0 to {limit}, got {{value}}.",
            value=value,
        )
    return jnp.clip(value, 0, limit)


def counts(op_name: str, value: Any, num_groups: int, limit: int) -> jax.Array:
    """Returns `masked_m` in int32, checked in the checked mode to be from 0 to `limit`."""
    name = "masked_m"
    value = _group_data(op_name, name, value, "G,", (num_groups,))
    if not _active.get():
        return value
    checkify.debug_check(
        jnp.all((value >= 0) & (value <= limit)),
        f"{op_name}: {name} must be from 0 to {limit}, got {{value}}.",
        value=value,
    )
    return value


def ids(op_name: str, value: Any, num_rows: int, num_groups: int, alignment: int) -> jax.Array:
    """Returns `group_ids` in int32.

    In the checked mode they must be groups or -1, one group in each aligned block and padding
    behind it.
    """
    name = "group_ids"
    value = _group_data(op_name, name, value, "T,", (num_rows,))
    if not _active.get() or not value.size:
        return value
    is_known = (value >= -1) & (value < num_groups)
    padded = jnp.pad(value, (0, -len(value) % alignment), constant_values=-1)
    blocks = padded.reshape(-1, alignment)
    is_padding = blocks == -1
    one_group = jnp.all(is_padding | (blocks == blocks[:, :1]))
    padding_last = jnp.all(is_padding[:, 1:] | ~is_padding[:, :-1])
    wrong = jnp.argmax(~is_known)
    checkify.debug_check(
        jnp.all(is_known),
        f"{op_name}: {name} must be from -1 to {num_groups - 1}, got {{value}} in row {{row}}.",
        value=value[wrong],
        row=wrong,
    )
    checkify.debug_check(
        one_group & padding_last,
        f"{op_name}: {name} must name one group, and then -1, in each {alignment} rows.",
    )
    return value
