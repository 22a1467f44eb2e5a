# SPDX-License-Identifier: Apache-2.0
"""The runner of the checks on a GPU, on steps that pass, fail, hang and end in the middle."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / ".ci"))

import gpu_check  # noqa: E402


def _step(name: str, code: str, **options) -> gpu_check.Step:
    command = (sys.executable, "-c", code)
    options = {"limit_s": 30, "kind": "program"} | options
    return gpu_check.Step("numerics", name, command, **options)


def _check(tmp_path, *steps, budget_s=60.0):
    status = gpu_check.check(steps, tmp_path, budget_s, {"device": "none"})
    content = json.loads((tmp_path / "gpu-check.json").read_text())
    return status, content["steps"], (tmp_path / "summary.txt").read_text()


def test_a_hanging_step_costs_only_itself(tmp_path):
    """With its children, which would keep the GPU."""
    code = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "child.wait()"
    )
    hangs = _step("hangs", code, limit_s=1.5)
    begin = time.monotonic()
    status, results, text = _check(tmp_path, hangs, _step("after", "print(7)"))
    assert status == 1 and time.monotonic() - begin < 20
    assert [r["outcome"] for r in results] == ["timed out", "passed"]
    assert "timed out  numerics/hangs" in text and "no end within 1.5 s" in text
    assert (tmp_path / "after.log").read_text() == "7\n"
    child = Path("/proc") / (tmp_path / "child").read_text() / "stat"
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_a_failing_step_fails_the_check_and_a_reporting_one_does_not(tmp_path):
    fails = "import sys; sys.exit(3)"
    status, results, text = _check(tmp_path, _step("a", fails), _step("b", "pass"))
    assert status == 1 and [r["outcome"] for r in results] == ["failed", "passed"]
    assert "exit status 3" in text
    status, results, text = _check(tmp_path, _step("a", fails, report_only=True))
    assert status == 0 and results[0]["outcome"] == "failed" and "only reported" in text


def test_what_the_budget_leaves_out_is_named(tmp_path):
    slow = _step("slow", "import time; time.sleep(60)")
    status, results, text = _check(tmp_path, slow, _step("late", "pass"), budget_s=0.5)
    assert status == 1 and [r["outcome"] for r in results] == ["timed out", "not run"]
    assert "not run    numerics/late" in text and "budget of 0.5 s" in text
    assert "the budget left it 0." in text.splitlines()[0]


@pytest.mark.slow
def test_a_test_that_the_budget_cuts_short_does_not_count_as_hanging(tmp_path):
    path = tmp_path / "test_long.py"
    path.write_text("import time\n\ndef test_short(): pass\ndef test_long(): time.sleep(600)\n")
    options = ("-p", "gpu_check_events", "-p", "no:cacheprovider", "-c", os.devnull)
    command = (sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(path))
    step = gpu_check.Step("rest", "r", command, 600)
    status, (result,), text = _check(tmp_path, step, budget_s=8)
    assert status == 1 and result["outcome"] == "timed out" and result["passed"] == 1
    assert result["hung"] == [] and "the budget left it" in text


@pytest.mark.parametrize("report_only", [False, True])
def test_a_missing_tool_is_named_and_the_rest_still_run(tmp_path, report_only):
    command = ("no-such-sanitizer", "--tool", "x")
    missing = gpu_check.Step("sanitizer", "a", command, 9, "program", report_only)
    status, results, text = _check(tmp_path, missing, _step("b", "pass"))
    assert status == (0 if report_only else 1)
    assert [r["outcome"] for r in results] == ["not run", "passed"]
    assert "no-such-sanitizer is not installed" in text


_EXPERIMENT = """
import json, os, sys
print(json.dumps({{"experiment": "e", "expected": "error 715"}}), flush=True)
{rest}
"""


@pytest.mark.parametrize(
    ("rest", "outcome", "got"),
    [
        ("print(json.dumps({'got': 'error 715', 'gpu': 'g'}))", "passed", "error 715"),
        ("print(json.dumps({'got': 'no error'})); sys.exit(3)", "unexpected", "no error"),
        ("sys.exit('a traceback')", "failed", "exit status 1"),
        ("os.kill(os.getpid(), 11)", "failed", "exit status -11"),
        ("import time; time.sleep(60)", "timed out", "no end within 2 s"),
    ],
)
def test_an_experiment_is_one_line_however_it_ends(tmp_path, rest, outcome, got):
    code = _EXPERIMENT.format(rest=rest)
    first = _step("e", code, kind="experiment", limit_s=2 if outcome == "timed out" else 30)
    status, results, text = _check(tmp_path, first, _step("after", "pass"))
    assert [r["outcome"] for r in results] == [outcome, "passed"]
    assert status == (outcome != "passed") and got in text.splitlines()[0]
    (line,) = (tmp_path / "experiments.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert found.pop("seconds") > 0
    kept = {"experiment": "e", "expected": "error 715", "got": got, "outcome": outcome}
    assert found == kept | ({"gpu": "g"} if outcome == "passed" else {})


def test_no_steps_is_no_success(tmp_path):
    assert gpu_check.check((), tmp_path, 1, {}) == 1


_TESTS = """
import os, time
import pytest

def test_good(): pass
def test_bad(): assert 0
@pytest.mark.skip(reason="two GPUs")
def test_left_out(): pass
def test_stuck(): {stuck}
def test_after_it(): pass
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stuck", "limit_s"), [("time.sleep(600)", 8), ("os.kill(os.getpid(), 9)", 60)]
)
def test_a_test_that_never_ends_is_named_and_the_rest_still_run(tmp_path, stuck, limit_s):
    path = tmp_path / "test_stuck.py"
    path.write_text(_TESTS.format(stuck=stuck))
    options = ("-p", "gpu_check_events", "-p", "no:cacheprovider", "-c", os.devnull)
    command = (sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(path))
    status, (result,), text = _check(tmp_path, gpu_check.Step("rest", "r", command, limit_s))
    assert status == 1 and result["passed"] == 2
    assert [test.rpartition("::")[2] for test in result["failed"]] == ["test_bad"]
    assert [test.rpartition("::")[2] for test in result["hung"]] == ["test_stuck"]
    assert "DID NOT END" in text and "NOT CHECKED  1 tests" in text and "two GPUs" in text


def _selects(step: gpu_check.Step, test: str) -> bool:
    """Whether pytest's arguments of a step, files and -k, include a test."""
    arguments = step.command[step.command.index("hopper") + 1 :]
    path, _, rest = test.partition("::")
    if f"--ignore={Path(path).parent}" in arguments:
        return False
    if not any(path.startswith(a) for a in arguments if a.startswith("tests")):
        return False
    if "-k" not in arguments:
        return True
    words = arguments[arguments.index("-k") + 1]
    if words.startswith("not ("):
        return not any(word in rest for word in words[5:-1].split(" or "))
    return words in rest


@pytest.mark.slow
def test_every_test_for_a_gpu_belongs_to_a_step():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "hopper", "tests"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    tests = [line for line in run.stdout.splitlines() if line.startswith("tests/")]
    assert len(tests) > 500, run.stdout[-2000:]
    chosen = [step for step in gpu_check.steps(Path()) if step.kind == "pytest"]
    assert [test for test in tests if not any(_selects(step, test) for step in chosen)] == []
    empty = [step.name for step in chosen if not any(_selects(step, test) for test in tests)]
    assert empty == []


def test_options(capsys):
    assert gpu_check.main(["--list", "--parts", "conformance", "sanitizer"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("conformance/conformance") and len(lines) == 1 + 3 * 8
    with pytest.raises(SystemExit):
        gpu_check.main(["--steps", "nothing"])
    assert "no step nothing" in capsys.readouterr().err
