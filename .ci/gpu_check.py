# SPDX-License-Identifier: Apache-2.0
"""Everything that only a Hopper GPU can tell, in steps that cannot take each other down.

Each step is a process with a time limit; one that hangs is killed, named, and the rest goes on.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests/gpu"))

from experiments import EXPERIMENTS, UNEXPECTED  # noqa: E402

PARTS = ("experiments", "golden", "conformance", "numerics", "execution", "rest", "sanitizer")
FAMILIES = ("dense", "wgrad", "split_k", "ragged", "contiguous", "masked", "k_grouped")
_KINDS = "tests/gpu/test_gpu_kinds.py"
# Set, everything runs simulated: a rehearsal, which wants a stand-in for libcuda besides.
REHEARSAL = "GPU_CHECK_REHEARSAL"
_SANITIZED = "tests/gpu/sanitizer_program.py"  # small calls of a kernel family, without pytest
_SANITIZER_ERROR = 99
# A test that hangs is left out when its step runs again, so that those after it are checked.
_MAX_HANGS = 2
DYING_S = 10
_EPILOG = """\
parts, in the order in which they run:
  experiments   what a GPU alone can tell, one by one: experiments.jsonl
  golden        what single instructions give, for tests/conformance/golden once it is reviewed
  conformance   single instructions, byte for byte against the simulator
  numerics      each family of kernels, and the quantizers, against float64
  execution     graphs, streams, threads, repeated calls, tune
  rest          every other test that runs on a GPU
  sanitizer     compute-sanitizer's memcheck, synccheck and racecheck, by family

racecheck only reports: whether it follows TMA and mbarriers, a GPU has yet to show.
"""


@dataclasses.dataclass(frozen=True)
class Step:
    """One process."""

    part: str
    name: str
    command: tuple[str, ...]
    limit_s: float
    kind: str = "pytest"  # or experiment, program
    report_only: bool = False


@dataclasses.dataclass
class Result:
    """What became of a step."""

    step: str
    part: str
    outcome: str  # passed, failed, unexpected, timed out, not run
    reason: str = ""
    seconds: float = 0.0
    report_only: bool = False
    passed: int = 0
    failed: list[str] = dataclasses.field(default_factory=list)
    hung: list[str] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    found: dict = dataclasses.field(default_factory=dict)  # by an experiment: expected, got, more

    @property
    def is_bad(self) -> bool:
        """Whether the check as a whole fails by it."""
        return self.outcome != "passed" and not self.report_only


def _pytest(*arguments: str) -> tuple[str, ...]:
    # In one process: pytest's output, as far as it came, is in the log.
    marked = "not hopper and not slow" if os.environ.get(REHEARSAL) else "hopper"
    return (sys.executable, "-m", "pytest", "-v", "-p", "gpu_check_events", "-m", marked,
            *arguments)  # fmt: skip


def _sanitizer() -> str | None:
    found = shutil.which("compute-sanitizer")
    places = [Path(p) for p in ("/usr/local/cuda/bin", sys.prefix)]
    deeper = (p for place in places if place.exists() for p in place.rglob("compute-sanitizer"))
    return found or next((str(p) for p in deeper if p.is_file() and os.access(p, os.X_OK)), None)


def steps(out: Path) -> list[Step]:
    """Returns all steps, the most telling first; what they leave is in `out`."""
    where = "sim" if os.environ.get(REHEARSAL) else "cuda"
    found = []
    for name, experiment in EXPERIMENTS.items():
        command = (sys.executable, "tests/gpu/experiments.py", name, where)
        found.append(Step("experiments", name, command, experiment.limit_s, "experiment"))
    golden = (sys.executable, "tests/conformance/update_golden.py", str(out / "golden"))
    found.append(Step("golden", "golden", golden, 60, "program"))
    found.append(Step("conformance", "conformance", _pytest("tests/conformance"), 240))
    for family in FAMILIES:
        found.append(Step("numerics", family, _pytest(_KINDS, "-k", family), 240))
    dense = ("tests/gpu/test_gpu_numerics.py", "tests/gpu/test_gpu_configurations.py")
    found.append(Step("numerics", "quantizers", _pytest("tests/gpu/test_gpu_quantize.py"), 180))
    found.append(Step("numerics", "dense_shapes", _pytest(dense[0]), 300))
    found.append(Step("numerics", "dense_configurations", _pytest(dense[1]), 400))
    families = " or ".join(FAMILIES)
    found.append(Step("execution", "kinds", _pytest(_KINDS, "-k", f"not ({families})"), 240))
    for name in ("execution", "tune"):
        found.append(Step("execution", name, _pytest(f"tests/gpu/test_gpu_{name}.py"), 240))
    elsewhere = ("tests", "--ignore=tests/gpu", "--ignore=tests/conformance")
    found.append(Step("rest", "rest", _pytest(*elsewhere), 400))
    tool = _sanitizer() or "compute-sanitizer"
    for check in ("memcheck", "synccheck", "racecheck"):
        for family in (*FAMILIES, "quantizers"):
            # API calls that fail are of other libraries; ours are checked by the package.
            command = (tool, "--tool", check, "--report-api-errors", "no", "--kernel-name",
                       "kernel_substring=sm90_", "--error-exitcode", str(_SANITIZER_ERROR),
                       sys.executable, _SANITIZED, "cuda", family)  # fmt: skip
            only_reports = check == "racecheck"
            step = Step("sanitizer", f"{check}_{family}", command, 180, "program", only_reports)
            found.append(step)
    return found


def _run_process(command: Sequence[str], log: Path, limit_s: float, events: Path) -> int | None:
    """Returns the exit status; None where the process, with its children, had to be killed."""
    environment = {**os.environ, "GPU_CHECK_EVENTS": str(events), "PYTHONUNBUFFERED": "1"}
    # `-m pytest` would put this folder, with the uncompiled package, before the installed one.
    environment["PYTHONSAFEPATH"] = "1"
    paths = [str(ROOT / ".ci"), environment.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with log.open("a") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                # A driver that is stuck may keep even a killed process: not for ever.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(DYING_S)


def _read_events(path: Path, result: Result) -> str | None:
    """Adds to a result what its tests came to; returns the test that never ended."""
    outcomes: dict[str, tuple[str, str]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        event = json.loads(line)
        if outcomes.get(event["test"], ("",))[0] != "failed":
            outcomes[event["test"]] = (event["outcome"], event.get("reason", ""))
    result.passed = sum(outcome == "passed" for outcome, _ in outcomes.values())
    result.failed = [test for test, (outcome, _) in outcomes.items() if outcome == "failed"]
    result.skipped = {
        t: reason for t, (outcome, reason) in outcomes.items() if outcome == "skipped"
    }
    running = [test for test, (outcome, _) in outcomes.items() if outcome == "running"]
    return next((test for test in running if test not in result.hung), None)


def _read_experiment(log: Path, result: Result) -> None:
    """Adds to a result what its experiment printed, as far as it came."""
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            result.found |= json.loads(line) if line.startswith("{") else {}


def _describe_experiment(result: Result, status: int | None) -> None:
    """Says what came instead of what was expected; of a process that died, its exit status."""
    if status not in (0, None):
        result.outcome = "unexpected" if status == UNEXPECTED else "failed"
    if status in (0, UNEXPECTED):
        result.reason = f"{result.found.get('got')}"
    if result.outcome != "passed":
        result.found.setdefault("got", result.reason)
        result.reason = f"expected {result.found.get('expected')}; got {result.found['got']}"


def run_step(step: Step, out: Path, deadline: float) -> Result:
    """Runs a step until it ends, or its limit or the deadline is there."""
    result = Result(step.name, step.part, "passed", report_only=step.report_only)
    if shutil.which(step.command[0]) is None:
        result.outcome, result.reason = "not run", f"{step.command[0]} is not installed"
        return result
    log, events = out / f"{step.name}.log", out / f"{step.name}.events"
    begin, limit_s = time.monotonic(), step.limit_s
    status = None
    for _ in range(_MAX_HANGS + 1):
        # A test that hung has had its turn; those that passed run again, which is cheap.
        command = step.command + tuple(f"--deselect={test}" for test in result.hung)
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        limit_s = min(step.limit_s, left_s)
        status = _run_process(command, log, limit_s, events)
        ended_on = _read_events(events, result) if step.kind == "pytest" else None
        # Killed, or ended by a signal in the middle of a test; or there was no more time for it.
        if ended_on is None or (status is None and limit_s < step.limit_s):
            break
        result.hung.append(ended_on)
    result.seconds = round(time.monotonic() - begin, 3)
    if status is None or result.hung:
        result.outcome = "timed out" if status is None else "failed"
        short = "the budget left it" if limit_s < step.limit_s else "no end within"
        result.reason = ", ".join(result.hung) or f"{short} {limit_s:.3g} s"
    elif status != 0 or result.failed:
        result.outcome = "failed"
        result.reason = f"exit status {status}"
    elif step.kind == "pytest" and not result.passed:
        result.outcome, result.reason = "failed", "no test ran"
    if step.kind == "experiment":
        _read_experiment(log, result)
        _describe_experiment(result, status)
    return result


def summary(results: Sequence[Result]) -> str:
    """Returns a line per step, and lines for what failed, hung or was skipped in it."""
    lines = []
    for result in results:
        mark = " (only reported)" if result.report_only else ""
        counts = f"{result.passed} passed, {len(result.failed)} failed" if result.passed else ""
        head = f"{result.outcome:10} {result.part}/{result.step}{mark}  {result.seconds:g} s"
        lines.append("  ".join(filter(None, (head, counts, result.reason))))
        lines += [f"    FAILED       {test}" for test in result.failed[:20]]
        lines += [f"    DID NOT END  {test}" for test in result.hung]
        reasons: dict[str, list[str]] = {}
        for test, reason in result.skipped.items():
            reasons.setdefault(reason, []).append(test)
        lines += [
            f"    NOT CHECKED  {len(tests)} tests, as {tests[0]}: {reason}"
            for reason, tests in reasons.items()
        ]
    bad = sum(result.is_bad for result in results)
    lines.append(f"{len(results)} steps, {bad} of them not passed")
    return "\n".join(lines)


def check(all_steps: Sequence[Step], out: Path, budget_s: float, machine: dict) -> int:
    """Runs steps, keeps `gpu-check.json` up to date, prints a summary; returns the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("*.log"), *out.glob("*.events")):
        old.unlink()
    deadline = time.monotonic() + budget_s
    results = [Result(s.name, s.part, "not run", "never reached") for s in all_steps]

    def save() -> None:
        content = {"machine": machine, "steps": [dataclasses.asdict(r) for r in results]}
        (out / "gpu-check.json").write_text(json.dumps(content, indent=1) + "\n")
        tried = [
            {**r.found, "outcome": r.outcome, "seconds": r.seconds} for r in results if r.found
        ]
        (out / "experiments.jsonl").write_text("".join(json.dumps(x) + "\n" for x in tried))

    for index, step in enumerate(all_steps):
        if time.monotonic() >= deadline:
            results[index].reason = f"the budget of {budget_s:g} s was spent"
            continue
        print(f"---- {step.part}/{step.name}: {' '.join(step.command)}", flush=True)
        results[index] = run_step(step, out, deadline)
        print(summary(results[index : index + 1]).rpartition("\n")[0], flush=True)
        save()
    save()
    text = summary(results)
    (out / "summary.txt").write_text(text + "\n")
    print("---- summary\n" + text)
    return 1 if not results or any(result.is_bad for result in results) else 0


def _said(command: Sequence[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return run.stdout.strip() if run.returncode == 0 else "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog=".ci/gpu-check PYTHON",
        description=__doc__.partition("\n")[0],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--steps", nargs="+", help="only steps of these names")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds at most")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds of one step")
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-check")
    parser.add_argument("--list", action="store_true", help="only name the steps")
    options = parser.parse_args(arguments)
    chosen = [
        dataclasses.replace(s, limit_s=min(s.limit_s, options.limit))
        for s in steps(options.out.resolve())
        if s.part in options.parts
    ]
    if options.steps:
        unknown = set(options.steps) - {s.name for s in chosen}
        if unknown:
            parser.error(f"no step {', '.join(sorted(unknown))}: see --list")
        chosen = [s for s in chosen if s.name in options.steps]
    if options.list:
        print("\n".join(f"{s.part}/{s.name}  at most {s.limit_s:g} s" for s in chosen))
        return 0
    git = ("git", "describe", "--always", "--dirty")
    packages = _said((sys.executable, "-m", "pip", "list", "--format=freeze")).splitlines()
    machine = {
        "device": _said((str(ROOT / ".ci/require-hopper"),)),
        "commit": _said(git) if shutil.which("git") else "unknown",
        "packages": [p for p in packages if p.startswith(("jax", "nvidia-cuda-nvrtc"))],
    }
    return check(chosen, options.out, options.budget, machine)


if __name__ == "__main__":
    sys.exit(main())
