# SPDX-License-Identifier: Apache-2.0
"""Runs problems on the kernels of one simulator library and prints as JSON what it found.

    python -m mutation.worker LIBRARY RUNS

RUNS is a JSON list of [kernel, problem name or "", mode]. Stops at the first run that fails.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import jax
from _problems import mismatch, poisoned_memory, problem_for, run

from jax_fp8gemm._src.native import extension
from jax_fp8gemm.testing import simulator
from mutation import quantization
from mutation.problems import PROBLEMS

# Of one run, many times what any takes: one that does not end fails by then, not with the worker.
_MOST_SECONDS = 60
# How the simulator's reports begin.
_FINDINGS = ("HAZARD", "DEADLOCK")


def judge(key: str, problem_name: str, mode: dict) -> tuple[str, str]:
    """Returns how the run fails, hazard, deadlock or wrong, and details; "" if it does not."""
    os.environ["JAX_FP8GEMM_PDL"] = "1" if key.endswith(".pdl") else "0"
    try:
        with simulator(**mode):
            if key in extension.core().quantize_configs():
                wrong = quantization.mismatch(key)
                return ("wrong", wrong) if wrong else ("", "")
            problem = PROBLEMS[problem_name] if problem_name else problem_for(key)
            out = run(problem, config=key)
    except jax.errors.JaxRuntimeError as error:
        report = str(error)
        starts = [report.find(word) for word in _FINDINGS if word in report]
        if not starts:
            raise  # the kernel did not run
        report = report[min(starts) :]
        return ("deadlock" if report.startswith("DEADLOCK") else "hazard"), report[:600]
    wrong = mismatch(problem, out)
    return ("wrong", wrong) if wrong else ("", "")


def judge_in_time(key: str, problem_name: str, mode: dict) -> tuple[str, str]:
    """Returns what `judge` does, or that the run does not end: Ctrl-C stops the simulator."""
    timer = threading.Timer(_MOST_SECONDS, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        return judge(key, problem_name, mode)
    except KeyboardInterrupt:
        return "timeout", f"no end after {_MOST_SECONDS} s"
    finally:
        timer.cancel()


def main(library: str, runs: str) -> None:
    """Runs until the first failure."""
    extension.sim_library = lambda: Path(library)
    extension.core().set_sim_library(library)  # importing the package named the built one
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    count = 0
    outcome, detail = "", ""
    with poisoned_memory():
        for key, problem_name, mode in json.loads(runs):
            count += 1
            outcome, detail = judge_in_time(key, problem_name, mode)
            if outcome:
                break
    print(json.dumps({"outcome": outcome, "detail": detail, "runs": count}))


if __name__ == "__main__":
    main(*sys.argv[1:])
