# SPDX-License-Identifier: Apache-2.0
"""The checked mode: reports sizes and ids of groups that make no sense, which only a device knows.

Checks are part of a program only while `checked` traces it, so that no other program pays for them.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.experimental import checkify, xla_metadata

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


def sizes(op_name: str, name: str, value: jax.Array, limit: int, *, align: int = 1) -> None:
    """Checks that sizes are not negative and, rounded up to `align`, fit in `limit` together."""
    if not _active.get() or not value.size:
        return
    rounded = jnp.clip(value, 0, limit + 1)
    rounded = rounded + -rounded % align
    fits = xla_grouped.running_ends(rounded, limit + 1)[-1] <= limit
    each = f", each rounded up to a multiple of {align}," if align > 1 else ""
    checkify.debug_check(
        jnp.all(value >= 0) & fits,
        f"{op_name}: {name}{each} must be at least 0 and add up to at most {limit}, got {{value}}.",
        value=value,
    )


def each_at_most(op_name: str, name: str, value: jax.Array, limit: int) -> None:
    """Checks that numbers of rows are from 0 to `limit`."""
    if not _active.get():
        return
    checkify.debug_check(
        jnp.all((value >= 0) & (value <= limit)),
        f"{op_name}: {name} must be from 0 to {limit}, got {{value}}.",
        value=value,
    )


def ids(op_name: str, name: str, value: jax.Array, num_groups: int, alignment: int) -> None:
    """Checks that ids are groups or -1, one group in each aligned block and padding behind it."""
    if not _active.get() or not value.size:
        return
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
