# SPDX-License-Identifier: Apache-2.0
"""Peer: what the package is compared with, and how a program of JAX is made ready to be timed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout

from benchmarks.operands import Operands

BLOCK_SCALED = "block-scaled fp8"
TENSOR_WISE = "tensor-wise fp8"
MX_SCALED = "1x32-scaled fp8"
WIDE = "no fp8"


class PeerMissingError(Exception):
    """A peer cannot run on this machine at all; the message says why."""


class NotApplicableError(Exception):
    """A peer has no such operation; the message says which."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A peer ready to be timed on one case; satisfies `timers.TimedCall`."""

    start: Callable[[], Any]
    finish: Callable[[Any], None]
    rows: Callable[[Any, np.ndarray], np.ndarray]  # some rows of a finished result, as float32
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Peer:
    """One contender."""

    name: str
    label: str
    semantics: str
    platforms: tuple[str, ...]
    prepare: Callable[[Operands], Prepared]
    # Raises PeerMissingError where the peer cannot run on this machine.
    probe: Callable[[], None] = lambda: None
    kinds: tuple[str, ...] = ("forward",)
    same_product: bool = True  # as the package: its error is a check, not only a remark


def prepared_jax(
    function: Callable,
    *arrays: Any,
    feedback: bool = False,
    look_at: Callable[[str], dict] = lambda text: {},
    compiler_options: dict[str, Any] | None = None,
    **notes: Any,
) -> Prepared:
    """Returns a jitted function of arrays, ready to be timed.

    XLA chooses the arrays' layouts, as it does inside a model, so that no call begins with a
    transpose.

    Args:
        function: What is timed.
        arrays: Its arguments.
        feedback: Whether the last argument is an accumulator: donated, and replaced by the result.
        look_at: Gives further notes from the text of the compiled program.
        compiler_options: Of XLA, for this program.
        notes: Go into the record.
    """
    donated = (len(arrays) - 1,) if feedback else ()
    layouts = [Format(Layout.AUTO)] * len(arrays)
    if feedback:
        layouts[-1] = None  # as the result has it, whose memory it is
    jitted = jax.jit(function, in_shardings=tuple(layouts), donate_argnums=donated)
    compiled = jitted.lower(*map(_shapes, arrays)).compile(compiler_options)
    placed = jax.device_put(arrays, compiled.input_formats[0])
    state = list(placed)
    if feedback:
        state[-1] = jnp.copy(state[-1])  # donated, while other peers need theirs

    def start() -> Any:
        result = compiled(*state)
        if feedback:
            state[-1] = result
        return result

    def rows(result: jax.Array, indices: np.ndarray) -> np.ndarray:
        return np.asarray(result.reshape(-1, result.shape[-1])[indices].astype(jnp.float32))

    return Prepared(start, jax.block_until_ready, rows, notes | look_at(compiled.as_text()))


def _shapes(tree: Any) -> Any:
    """Returns shapes and dtypes, without the layouts that the arrays happen to have."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
