# SPDX-License-Identifier: Apache-2.0
"""The runner of the checks on a GPU, on steps that pass, fail, hang and end in the middle."""

import json
import os
import re
import shutil
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


# ---- A quarter of an hour on a lent GPU ----------------------------------------------------------

_FAKE_PYTHON = r"""#!/bin/sh
echo "$@" | head -n 1 >> "$CALLS"
case "$*" in
  .ci/gpu_check.py*) mkdir -p build/gpu-check/golden; echo {} > build/gpu-check/gpu-check.json
    echo {} > build/gpu-check/experiments.jsonl; echo {} > build/gpu-check/golden/invented.json
    echo all > build/gpu-check/summary.txt; exit $STATUS ;;
  *" bench "*) for last; do :; done; mkdir -p "$last"; echo {} > "$last/record.json"
    [ $STATUS = 0 ] || exec sleep 600
    echo "a table" > "$last/report.md" ;;
  *" tune "*) echo {} > build/tuned.json; echo {} > build/tuned.measurements.json ;;
esac
"""


@pytest.fixture
def lent(tmp_path):
    """Returns a function that makes one call on a machine whose tools are stand-ins."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (
        ("python3", _FAKE_PYTHON),
        ("nvidia-smi", "#!/bin/sh\necho '9.0, Invented, 580.1'\n"),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def call(number: int, *, status: int = 0, budget_s: int = 0):
        """Returns the run, its files, and the commands that it gave to Python."""
        out = tmp_path / f"out{number}"
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "OUT": str(out)}
        environment |= {"CALLS": str(tmp_path / "calls"), "STATUS": str(status)}
        environment |= {"GPU_SESSION_BUDGET": str(budget_s)} if budget_s else {}
        command = ["bash", str(tmp_path / ".ci/gpu-session"), str(number)]
        run = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd="/"
        )
        calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
        files = {path.name for path in out.iterdir()} if out.exists() else set()
        return run, files, calls.splitlines()

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
    assert 200 < _budget(calls[-1]) < 240 and "--limit" in calls[-1]
    assert any("install --no-index" in call for call in calls[:-1])


def test_second_call(lent):
    run, files, calls = lent(2)
    assert run.returncode == 0, run.stdout + run.stderr
    kept = {"record.json", "report.md", "tuned.json", "tuned.measurements.json", "logs.tar.gz"}
    assert files == kept | {"install-2.log"}
    bench, tune = calls[-3], calls[-1]
    assert "bench --require-gpu --suites headline" in bench and "tune --file" in tune
    # What the benchmark did not need is tuned with; all of it ends in 8 minutes.
    assert 240 < _budget(bench) < 300 and 300 < _budget(tune) < 480


@pytest.mark.slow
def test_a_benchmark_that_does_not_end_leaves_time_to_tune(lent):
    """Its record of the cases so far is kept."""
    begin = time.monotonic()
    run, files, calls = lent(2, status=1, budget_s=10)
    assert run.returncode == 1 and time.monotonic() - begin < 20
    assert "tune --file" in calls[-1] and 0 < _budget(calls[-1]) < 4
    assert {"record.json", "tuned.json"} <= files and "report.md" not in files


def test_an_unknown_call_is_named(lent):
    run, files, _ = lent(3)
    assert run.returncode == 2 and "no call 3" in run.stderr and not files
