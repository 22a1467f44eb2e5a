# SPDX-License-Identifier: Apache-2.0
"""Statistics of timings: medians, spreads, ratios."""

import statistics
from collections.abc import Callable, Iterable, Sequence

import numpy as np


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Returns median, quartiles, minimum and relative spread of positive samples.

    `spread` is the distance of the quartiles over the median.

    Raises:
        ValueError: There are no samples, or one is not a positive number.
    """
    values = np.asarray(samples, np.float64)
    if not values.size or not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError(f"samples must be positive numbers, got {list(samples)}")
    low, middle, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return {
        "median": middle,
        "low_quartile": low,
        "high_quartile": high,
        "minimum": float(values.min()),
        "spread": (high - low) / middle,
    }


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Returns how many times longer `theirs` took, with quartiles, round by round.

    Samples of one round were taken one after the other: a drift of the clocks falls on both.
    With different numbers of samples only the medians are compared.
    """
    if len(ours) != len(theirs):
        ratio = summary(theirs)["median"] / summary(ours)["median"]
        return {"median": ratio, "low_quartile": ratio, "high_quartile": ratio}
    ratios = summary([b / a for a, b in zip(ours, theirs, strict=True)])
    return {name: ratios[name] for name in ("median", "low_quartile", "high_quartile")}


def geometric_mean(values: Iterable[float]) -> float | None:
    """Returns the geometric mean, or None of nothing."""
    values = list(values)
    return statistics.geometric_mean(values) if values else None


def interleave(names: Sequence[str], num_rounds: int) -> list[str]:
    """Returns the order of sampling: every name once per round, every other round backwards."""
    order: list[str] = []
    for index in range(num_rounds):
        order += names if index % 2 == 0 else list(reversed(names))
    return order


def sample_rounds(
    samplers: dict[str, Callable[[], float]],
    num_rounds: int,
    keep_going: Callable[[], bool] = lambda: True,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Samples everything in interleaved rounds.

    Args:
        samplers: Functions that give one timing in seconds, by name.
        num_rounds: Rounds at most.
        keep_going: Asked before each further round.

    Returns:
        Samples by name, and the message of what each sampler that failed failed with. A failed
        sampler is not called again.
    """
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    failures: dict[str, str] = {}
    order = interleave(list(samplers), num_rounds)
    for position, name in enumerate(order):
        if position and position % len(samplers) == 0 and not keep_going():
            break
        if name in failures:
            continue
        try:
            samples[name].append(samplers[name]())
        except Exception as error:  # a peer may fail in any way and must not end the run
            failures[name] = f"{type(error).__name__}: {error}"
    return {n: s for n, s in samples.items() if n not in failures}, failures


def roofline_seconds(flops: float, num_bytes: float, peak_flops: float, bandwidth: float) -> float:
    """Returns the least time that the measured limits of a machine allow."""
    return max(flops / peak_flops, num_bytes / bandwidth)
