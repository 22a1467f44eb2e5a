# SPDX-License-Identifier: Apache-2.0
"""Which configurations a problem can have, best first: what was measured, then what is modelled."""

from typing import Any

from jax_fp8gemm._src.native import extension, tuned
from jax_fp8gemm._src.native.gemm_problem import Problem


def tuned_entry(problem: Problem, gpu: str) -> tuned.Entry | None:
    """Returns what was measured for a problem on a GPU model, if anything."""
    return tuned.lookup(problem, gpu) if gpu else None


def rank(problem: Problem, *, backend: str, gpu: str | None = None) -> list[dict[str, Any]]:
    """Returns every configuration for a problem, best first, as dicts of tile and modelled times.

    Args:
        problem: What is computed.
        backend: "cuda" or "sim".
        gpu: Model whose tuned table goes before the model; None for that of the first GPU.

    Raises:
        ValueError: No kernel computes the problem; the message names the field.
    """
    fields = problem._asdict()
    try:
        ranked = dict(extension.core().ranked_configs(fields, backend))
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    entry = tuned_entry(problem, extension.planning_gpu(backend) if gpu is None else gpu)
    if entry:
        key = entry.best.config
        cost = ranked.pop(key, None) or extension.core().config_cost(fields, key)
        ranked = {key: cost | {"measured_microseconds": entry.best.microseconds}} | ranked
    return [
        {"config": key, **extension.core().describe_config(key), **cost}
        for key, cost in ranked.items()
    ]
