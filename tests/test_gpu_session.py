# SPDX-License-Identifier: Apache-2.0
"""The two calls for a GPU that is lent for a quarter of an hour: their commands, files and time."""

import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from _gpu_session import make_call, make_tools

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / ".ci"))

import gpu_check  # noqa: E402

MOST_S = {1: 240, 2: 480}
# Between the last second in which something may begin, and the end: see .ci/gpu-session.
KILLING_S = 10
SCRIPTS_S = 10  # starting interpreters, packing logs

_FAKE_PYTHON = r"""#!/bin/sh
echo "$@" | head -n 1 >> "$CALLS"
case "$*" in *"$HANGS"*) exec sleep 600 ;; esac
case "$*" in
  .ci/gpu_check.py*) mkdir -p build/gpu-check/golden; echo {} > build/gpu-check/gpu-check.json
    echo {} > build/gpu-check/experiments.jsonl; echo {} > build/gpu-check/golden/invented.json
    echo all > build/gpu-check/summary.txt; exit $STATUS ;;
  *" bench "*) for last; do :; done; mkdir -p "$last"; echo {} > "$last/record.json"
    echo "a table" > "$last/report.md" ;;
  *" tune "*) echo {} > build/tuned.json; echo {} > build/tuned.measurements.json ;;
esac
"""


@pytest.fixture
def lent(tmp_path):
    """Returns a function that makes one call; it returns the commands given to Python, too."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    tools = make_tools(tmp_path / "tools", _FAKE_PYTHON)

    def call(number: int, *, status: int = 0, hangs: str = "nothing", budget_s: int = 0):
        environment = {"CALLS": str(tmp_path / "calls"), "STATUS": str(status), "HANGS": hangs}
        if budget_s:
            environment["GPU_SESSION_BUDGET"] = str(budget_s)
        run, files = make_call(tmp_path, tools, number, environment)
        calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
        return run, set(files), calls.splitlines()

    return call


def _budget(call: str) -> int:
    return int(re.search(r"--budget (\d+)", call)[1])


@pytest.mark.parametrize(("status", "exit_status"), [(0, 0), (1, 1)])
def test_first_call(lent, status, exit_status):
    run, files, calls = lent(1, status=status)
    assert run.returncode == exit_status, run.stdout + run.stderr
    kept = {"gpu-check.json", "experiments.jsonl", "summary.txt", "invented.json", "logs.tar.gz"}
    assert files == kept | {"install-1.log"}
    assert calls[-1].endswith("--parts experiments golden numerics")
    assert 200 < _budget(calls[-1]) <= MOST_S[1] - gpu_check.DYING_S - SCRIPTS_S
    assert "--limit" in calls[-1]
    assert any("install --no-index" in call for call in calls[:-1])


def test_second_call(lent):
    run, files, calls = lent(2)
    assert run.returncode == 0, run.stdout + run.stderr
    kept = {"record.json", "report.md", "tuned.json", "tuned.measurements.json", "logs.tar.gz"}
    assert files == kept | {"install-2.log"}
    bench, tune = calls[-3], calls[-1]
    assert "bench --suites headline --require-gpu" in bench and "tune --file" in tune
    # What the benchmark did not need is tuned with.
    assert 240 < _budget(bench) < 300 and 300 < _budget(tune) < MOST_S[2]


def test_nothing_begins_too_late_to_end_in_time():
    text = (ROOT / ".ci/gpu-session").read_text()
    budgets = {int(n): int(s) for n, s in re.findall(r"^  (\d)\) budget=(\d+) ;;", text, re.M)}
    assert {n: s + KILLING_S + SCRIPTS_S for n, s in budgets.items()} == MOST_S
    assert gpu_check.DYING_S == KILLING_S
    # No experiment is cut short by what a step of the first call may take.
    limit = int(re.search(r"GPU_SESSION_LIMIT:-(\d+)", text)[1])
    assert max(experiment.limit_s for experiment in gpu_check.EXPERIMENTS.values()) <= limit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "hangs", "kept"),
    [
        (1, "install", set()),
        (2, "install", set()),
        (2, " bench ", {"tuned.json", "tuned.measurements.json"}),
        (2, "calibration", {"record.json", "report.md", "tuned.json"}),
        (2, " tune ", {"record.json", "report.md"}),
    ],
)
def test_a_command_that_does_not_end_costs_no_more_than_its_time(lent, number, hangs, kept):
    """Those after it still run, and what those before it left is kept."""
    begin = time.monotonic()
    run, files, calls = lent(number, hangs=hangs, budget_s=6)
    assert run.returncode == 1 and time.monotonic() - begin < 6 + KILLING_S
    assert kept <= files and ("report.md" in files) == (hangs in ("calibration", " tune "))
    assert ("tune --file" in calls[-1]) == (hangs != "install")


def test_an_unknown_call_is_named(lent):
    run, files, _ = lent(3)
    assert run.returncode == 2 and "no call 3" in run.stderr and not files
