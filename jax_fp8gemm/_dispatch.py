# SPDX-License-Identifier: Apache-2.0
"""Chooses an operation's implementation while lowering, and unifies operands under shard_map."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jax_fp8gemm import _checks

PLATFORM = {"cuda": "cuda", "sim": "cpu"}  # where each kernel implementation runs


def _varying_axes(x: Any) -> frozenset:
    """Returns the manual mesh axes over which x varies (jax 0.10 renamed the attribute)."""
    aval = jax.typeof(x)
    return aval.mat.varying if hasattr(aval, "mat") else aval.vma


def unify_varying(tree: Any) -> Any:
    """Returns the arrays of `tree`, each varying over every manual axis that one of them does.

    Every branch of a platform choice must have one type, and a custom call's result takes its type
    from one operand. It is called outside of what has a derivative rule, so that the transpose of
    the cast sums a replicated operand's cotangent.
    """
    leaves = jax.tree.leaves(tree)
    axes = frozenset().union(*map(_varying_axes, leaves))
    if not axes:
        return tree

    def vary(x):
        missing = tuple(axes - _varying_axes(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)


def by_platform(
    where: str,
    implementation: str | None,
    operands: tuple,
    *,
    kernel: Callable[..., Any],
    xla: Callable[..., Any],
    results: Any,
) -> Any:
    """Applies the implementation that belongs to the platform lowered for.

    Args:
        where: Public name of the operation, for messages.
        implementation: As in the public functions.
        operands: Arrays, or None where an optional one is absent.
        kernel: `kernel(*operands, backend=...)` with "cuda" or "sim".
        xla: `xla(*operands)`.
        results: A `jax.ShapeDtypeStruct`, or a tree of them, like the result.

    Returns:
        The result; lowering it for a platform on which `implementation` does not run raises
        NotImplementedError.
    """
    if implementation == "xla":
        return xla(*operands)
    shapes = [x.shape for x in jax.tree.leaves(operands)]
    symbolic = next((shape for shape in shapes if not _checks.is_static(shape)), None)

    def refuse(*arrays):
        refused = functools.partial(
            _refuse_p.bind,
            *jax.tree.leaves(arrays),
            where=where,
            implementation=implementation,
            symbolic=symbolic,
        )
        return jax.tree.map(lambda like: refused(shape=like.shape, dtype=like.dtype), results)

    if symbolic is not None:

        def kernel(*arrays, backend):
            return refuse(*arrays)

    if implementation is None:
        cuda = functools.partial(kernel, backend="cuda")
        return lax.platform_dependent(*operands, cuda=cuda, default=xla)
    chosen = {PLATFORM[implementation]: functools.partial(kernel, backend=implementation)}
    return lax.platform_dependent(*operands, **chosen, default=refuse)


# Stands in a program where an implementation does not run: traceable, but never lowered or run.
_refuse_p = Primitive("jax_fp8gemm_refuse")


@_refuse_p.def_abstract_eval
def _refuse_abstract_eval(first, *_, shape, dtype, **__):
    return first.update(shape=shape, dtype=dtype)


def _refusal(
    where: str, implementation: str | None, symbolic: tuple | None, platforms: tuple[str, ...]
) -> NotImplementedError:
    if symbolic is not None:
        return NotImplementedError(
            f"{where}: the kernels are chosen by shape, which must be numbers, got {symbolic};"
            " export with numbers, or with implementation='xla'."
        )
    return NotImplementedError(
        f"{where}: implementation={implementation!r} runs on the platform"
        f" {PLATFORM[implementation]!r}, not on {', '.join(map(repr, platforms))};"
        " use implementation=None or 'xla' there."
    )


@_refuse_p.def_impl
def _refuse_impl(*_, where, implementation, symbolic, **__):
    raise _refusal(where, implementation, symbolic, (jax.default_backend(),))


def _refuse_lowering(ctx, *_, where, implementation, symbolic, **__):
    platforms = tuple(ctx.platforms or ctx.module_context.platforms)
    raise _refusal(where, implementation, symbolic, platforms)


mlir.register_lowering(_refuse_p, _refuse_lowering)
