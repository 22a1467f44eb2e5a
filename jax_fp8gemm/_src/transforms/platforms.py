# SPDX-License-Identifier: Apache-2.0
"""Chooses an operation's implementation while lowering, and unifies operands under shard_map."""

import functools
import warnings
from typing import Any

import jax
from jax import lax

PLATFORM = {"cuda": "cuda", "sim": "cpu"}  # where each kernel implementation runs
_HOPPER = "9.0"


def _gpus() -> list[Any]:
    """Returns all CUDA devices of the job, none where JAX has none."""
    try:
        return jax.devices("cuda")
    except RuntimeError:
        return []


def other_gpus() -> list[str]:
    """Returns the names of the GPUs that are not Hopper, each once."""
    others = [d for d in _gpus() if getattr(d, "compute_capability", _HOPPER) != _HOPPER]
    return list(
        dict.fromkeys(
            f"{device.device_kind} (compute capability {device.compute_capability})"
            for device in others
        )
    )


@functools.cache
def default_is_kernels() -> bool:
    """Returns whether `implementation=None` means kernels on CUDA.

    A program may be put on any GPU of the job, so one that is not Hopper decides for all, with one
    warning. Without any GPU programs are for another machine, which is taken to have Hopper ones.
    """
    others = other_gpus()
    if others:
        warnings.warn(
            f"jax_fp8gemm: the kernels run on NVIDIA Hopper (compute capability {_HOPPER}), and JAX"
            f" sees {', '.join(others)}: implementation=None means plain JAX in this process. To"
            " use the kernels, show JAX only Hopper GPUs (CUDA_VISIBLE_DEVICES); to be rid of this"
            " warning, ask for implementation='xla'.",
            RuntimeWarning,
            stacklevel=2,
        )
    return not others


def varying_axes(x: Any) -> frozenset:
    """Returns the manual mesh axes over which x varies (jax 0.10 renamed the attribute)."""
    aval = jax.typeof(x)
    return aval.mat.varying if hasattr(aval, "mat") else aval.vma


def unify_varying(tree: Any) -> Any:
    """Returns the arrays of `tree`, each varying over every manual axis that one of them does.

    Every implementation must have one type, and an operation's results take theirs from one
    operand. It is called outside of what has a derivative rule, so that the transpose of
    the cast sums a replicated operand's cotangent.
    """
    leaves = jax.tree.leaves(tree)
    axes = frozenset().union(*map(varying_axes, leaves))
    if not axes:
        return tree

    def vary(x):
        missing = tuple(axes - varying_axes(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)
