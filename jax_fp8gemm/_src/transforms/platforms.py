# SPDX-License-Identifier: Apache-2.0
"""Chooses an operation's implementation while lowering, and unifies operands under shard_map."""

import functools
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jax_fp8gemm._src.operands import checks

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


def choose(op: Any, operands: tuple) -> Any:
    """Returns the results of an Operation by the implementation for the platform lowered for.

    Lowering it for a platform on which `op.implementation` does not run raises NotImplementedError.
    """
    op.check_extents(*operands)
    if op.implementation == "xla":
        return op.xla(*operands)
    shapes = [x.shape for x in jax.tree.leaves(operands)]
    symbolic = next((shape for shape in shapes if not checks.is_static(shape)), None)

    def refuse(*arrays):
        refused = functools.partial(
            _refuse_p.bind,
            *jax.tree.leaves(arrays),
            op_name=op.op_name,
            implementation=op.implementation,
            symbolic=symbolic,
        )
        types = op.result_types(*operands)
        return jax.tree.map(lambda like: refused(shape=like.shape, dtype=like.dtype), types)

    def kernel(backend):
        if symbolic is not None:
            return refuse
        return op.xla if op.is_empty(*operands) else functools.partial(op.kernel, backend=backend)

    if op.implementation is None:
        return lax.platform_dependent(*operands, cuda=kernel("cuda"), default=op.xla)
    chosen = {PLATFORM[op.implementation]: kernel(op.implementation)}
    return lax.platform_dependent(*operands, **chosen, default=refuse)


# Stands in a program where an implementation does not run: traceable, but never lowered or run.
_refuse_p = Primitive("jax_fp8gemm_refuse")


@_refuse_p.def_abstract_eval
def _refuse_abstract_eval(first, *_, shape, dtype, **__):
    return first.update(shape=shape, dtype=dtype)


def _refusal(
    op_name: str, implementation: str | None, symbolic: tuple | None, platforms: tuple[str, ...]
) -> NotImplementedError:
    if symbolic is not None:
        return NotImplementedError(
            f"{op_name}: the kernels are chosen by shape, which must be numbers, got {symbolic};"
            " export with numbers, or with implementation='xla'."
        )
    return NotImplementedError(
        f"{op_name}: implementation={implementation!r} runs on the platform"
        f" {PLATFORM[implementation]!r}, not on {', '.join(map(repr, platforms))};"
        " use implementation=None or 'xla' there."
    )


@_refuse_p.def_impl
def _refuse_impl(*_, op_name, implementation, symbolic, **__):
    raise _refusal(op_name, implementation, symbolic, (jax.default_backend(),))


def _refuse_lowering(ctx, *_, op_name, implementation, symbolic, **__):
    platforms = tuple(ctx.platforms or ctx.module_context.platforms)
    raise _refusal(op_name, implementation, symbolic, platforms)


mlir.register_lowering(_refuse_p, _refuse_lowering)
