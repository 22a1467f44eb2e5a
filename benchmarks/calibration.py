# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks.calibration: the cost model beside published and measured times.

Without arguments: predicted over published time of every DeepGEMM row, for DeepGEMM's tile and for
the package's own choice. With files of measurements that `python -m jax_fp8gemm tune` wrote: the
regret of the heuristics, that is how much longer their choice takes than the best measured.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.published import Row, rows
from jax_fp8gemm._src.native import ranking
from jax_fp8gemm._src.native.gemm_problem import Problem
from jax_fp8gemm._src.tools.tuning import tune
from jax_fp8gemm._src.tools.tuning.sampling import geometric_mean

# A choice within this share of the best is as good: what the project asks of them.
GOAL = 0.05
_TILE = ("block_m", "block_n", "cluster_m", "cluster_n")


class Prediction(NamedTuple):
    """One published row beside the model, in microseconds; `theirs` None without such a tile."""

    row: Row
    theirs: float | None
    ours: float
    our_config: str

    @property
    def their_ratio(self) -> float | None:
        """Predicted over published time with DeepGEMM's tile."""
        return self.theirs and self.theirs / self.row.microseconds

    @property
    def our_ratio(self) -> float:
        """Predicted over published time with the heuristics' choice."""
        return self.ours / self.row.microseconds


class Regret(NamedTuple):
    """One problem: the heuristics' choice and the best, in measured microseconds."""

    problem: Problem
    chosen: str
    chosen_us: float | None  # None: it was not measured, or failed
    predicted_us: float
    best: str
    best_us: float

    @property
    def regret(self) -> float | None:
        """How much longer the choice takes than the best: 0 where it is the best."""
        return None if self.chosen_us is None else self.chosen_us / self.best_us - 1


def predictions() -> list[Prediction]:
    """Returns every published row beside the model."""
    found = []
    for row in rows():
        ranked = ranking.rank(row.problem, backend="cuda", gpu="")
        theirs = [c for c in ranked if tuple(c[f] for f in _TILE) == row.tile and c["split_k"] == 1]
        their_us = theirs[0]["microseconds"] if theirs else None
        found.append(Prediction(row, their_us, ranked[0]["microseconds"], ranked[0]["config"]))
    return found


def regrets(measurements: tune.Measurements) -> list[Regret]:
    """Returns the regret of the heuristics as they are now, for each measured problem."""
    found = []
    for measured in measurements.problems:
        times = {r.config: r.microseconds for r in measured.results if r.samples}
        if not times:
            continue
        choice = ranking.rank(measured.problem, backend="cuda", gpu="")[0]
        best = min(times, key=times.__getitem__)
        chosen = choice["config"]
        found.append(
            Regret(
                measured.problem,
                chosen,
                times.get(chosen),
                choice["microseconds"],
                best,
                times[best],
            )
        )
    return found


def _table(header: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *body]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def report_predictions(found: Sequence[Prediction]) -> str:
    """Returns tables of what `predictions` gives."""
    header = ["problem", "published us", "source", "DeepGEMM's tile", "predicted / published"]
    body = [
        [
            str(p.row.problem),
            _number(p.row.microseconds, 1),
            p.row.source,
            "{}x{} {}x{}".format(*p.row.tile),
            _number(p.their_ratio),
            p.our_config.split(".", 1)[1].split(".e4m3")[0],
            _number(p.our_ratio),
        ]
        for p in found
    ]
    lines = _table([*header, "ours", "predicted / published"], body)
    means = []
    for family in dict.fromkeys(p.row.family for p in found):
        some = [p for p in found if p.row.family == family]
        theirs = [p.their_ratio for p in some if p.their_ratio]
        spread = f"{min(theirs):.2f} to {max(theirs):.2f}" if theirs else "-"
        ours = geometric_mean(p.our_ratio for p in some)
        cells = [family, str(len(some)), _number(geometric_mean(theirs)), spread, _number(ours)]
        means.append(cells)
    header = ["rows", "number", "DeepGEMM's tile: mean", "from, to", "ours: mean"]
    return "\n".join([*lines, "", *_table(header, means)])


def report_regrets(measurements: tune.Measurements, found: Sequence[Regret]) -> str:
    """Returns a table of what `regrets` gives, worst first, and its summary."""
    machine = measurements.machine
    head = f"{machine.gpu}, driver {machine.driver}, {machine.method}, {measurements.created}"
    lines = [head, ""]
    if measurements.simulated:
        lines = ["**Simulated on a CPU: these are no times of a GPU.**", "", *lines]
    ordered = sorted(found, key=lambda r: -1 if r.regret is None else r.regret, reverse=True)
    header = ["problem", "chosen", "us", "predicted / measured", "best", "us", "regret"]
    body = [
        [
            str(r.problem),
            r.chosen,
            _number(r.chosen_us),
            _number(r.chosen_us and r.predicted_us / r.chosen_us),
            r.best,
            _number(r.best_us),
            "not measured" if r.regret is None else f"{r.regret:.1%}",
        ]
        for r in ordered
    ]
    known = [r.regret for r in found if r.regret is not None]
    lines += _table(header, body)
    if known:
        mean = geometric_mean(1 + regret for regret in known) - 1
        good = sum(regret <= GOAL for regret in known)
        lines += [
            "",
            f"mean regret {mean:.1%}, worst {max(known):.1%}; {good} of {len(known)} choices"
            f" within {GOAL:.0%} of the best; {len(found) - len(known)} not measured",
        ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("measurements", nargs="*", type=Path, help="files that tune wrote")
    parser.add_argument(
        "--problems", action="store_true", help="only print the published problems, for tune --file"
    )
    options = parser.parse_args(arguments)
    if options.problems:
        print("\n".join(dict.fromkeys(str(row.problem) for row in rows())))
        return 0
    if not options.measurements:
        print(report_predictions(predictions()))
    for path in options.measurements:
        try:
            measurements = tune.load(path)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        print(report_regrets(measurements, regrets(measurements)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
