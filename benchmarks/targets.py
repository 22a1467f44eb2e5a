# SPDX-License-Identifier: Apache-2.0
"""What the project asks of itself, held against a record: met, missed or not measured."""

import dataclasses
from collections.abc import Callable, Iterable

from benchmarks import tables
from jax_fp8gemm._src.tools.tuning import sampling

_LARGE_ROWS, _LARGE_K = 2048, 4096
_FEW_ROWS = 128
_PEAK_ROWS, _PEAK_K = 4096, 7168


@dataclasses.dataclass(frozen=True)
class Target:
    """One target; `values` gives a number per row, of which the worst counts unless `mean`."""

    what: str
    goal: float
    values: Callable[[dict], Iterable[float | None]]
    mean: bool = False
    at_most: bool = False

    def measured(self, record: dict) -> tuple[float | None, int]:
        """Returns what the record says, and of how many rows; None where it has none."""
        found = [value for value in self.values(record) if value is not None]
        if not found:
            return None, 0
        worst = max(found) if self.at_most else min(found)
        return (sampling.geometric_mean(found) if self.mean else worst), len(found)

    def is_met(self, value: float) -> bool:
        """Whether a measured value is good enough."""
        return value <= self.goal if self.at_most else value >= self.goal


def _ratios(peer: str, chosen: Callable[[dict], bool] = lambda case: True) -> Callable:
    return lambda record: (tables.ratio(c, peer) for c in record["cases"] if chosen(c))


def _is_wide(case: dict) -> bool:
    large = case["m"] >= _LARGE_ROWS and case["k"] >= _LARGE_K
    return case["kind"] == "forward" and (large or case["m"] <= _FEW_ROWS)


def _rate(case: dict, record: dict, amount: str, limit: str) -> float | None:
    """Returns the share of a measured limit that ours reaches."""
    ours, limits = case["results"].get("ours", {}), record["limits"]
    if ours.get("status") != "measured" or limit not in limits:
        return None
    return case[amount] / ours["summary"]["median"] / limits[limit]["per_s"]


def _shares(amount: str, limit: str, chosen: Callable[[dict], bool]) -> Callable:
    return lambda record: (_rate(c, record, amount, limit) for c in record["cases"] if chosen(c))


def _host_us(record: dict) -> list[float | None]:
    return [record["extras"].get("host_cost", {}).get("added_us")]


def _is_short(case: dict) -> bool:
    return case["kind"] == "forward" and case["m"] <= _FEW_ROWS


def _is_peak(case: dict) -> bool:
    return case["kind"] == "forward" and case["m"] == _PEAK_ROWS and case["k"] >= _PEAK_K


def _is_gradient(case: dict) -> bool:
    return case["kind"] in ("wgrad", "k_grouped")


TARGETS = (
    Target("DeepGEMM's time over ours, geometric mean", 1.15, _ratios("deep_gemm"), mean=True),
    Target("DeepGEMM's time over ours, every row", 0.98, _ratios("deep_gemm")),
    Target(
        "cuBLASLt block-scaled over ours, geometric mean", 1.1, _ratios("cublaslt_block"), mean=True
    ),
    Target(
        f"bfloat16 over ours, M >= {_LARGE_ROWS} with K >= {_LARGE_K}, or M <= {_FEW_ROWS}",
        1.8,
        _ratios("jax_bf16", _is_wide),
    ),
    Target(
        f"share of copy bandwidth, M <= {_FEW_ROWS}",
        0.85,
        _shares("bytes", "copy_bytes", _is_short),
    ),
    Target(
        f"share of the fp8 rate, M = {_PEAK_ROWS} with K >= {_PEAK_K}",
        0.8,
        _shares("flops", "fp8_flops", _is_peak),
    ),
    Target(
        "share of the fp8 rate, weight gradients", 0.7, _shares("flops", "fp8_flops", _is_gradient)
    ),
    Target("host cost above a trivial kernel, us", 5.0, _host_us, at_most=True),
)


def report(record: dict) -> str:
    """Returns a table of the targets; nothing for a record of a CPU, which cannot meet any."""
    if record["environment"]["platform"] != "gpu":
        return ""
    lines = ["| target | goal | measured | rows | |", "|---|--:|--:|--:|---|"]
    for target in TARGETS:
        value, rows = target.measured(record)
        goal = f"{'<=' if target.at_most else '>='} {target.goal:g}"
        if value is None:
            lines.append(f"| {target.what} | {goal} | - | 0 | not measured |")
            continue
        verdict = "met" if target.is_met(value) else "**missed**"
        lines.append(f"| {target.what} | {goal} | {value:.2f} | {rows} | {verdict} |")
    note = "Worst row unless it says mean. The heuristics' regret is `benchmarks.calibration`'s."
    return "\n".join(["## Targets", "", *lines, "", note])
