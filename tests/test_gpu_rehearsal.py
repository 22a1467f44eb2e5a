# SPDX-License-Identifier: Apache-2.0
"""Rehearses what a GPU will run first, on the simulator behind a stand-in for libcuda."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from _gpu_session import make_call, make_tools

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / ".ci"), str(ROOT / "tests/conformance"), str(ROOT)]

import gpu_check  # noqa: E402
import worlds  # noqa: E402

from benchmarks import record  # noqa: E402

# Installs nothing: what is to be rehearsed is there.
PYTHON_WITHOUT_PIP = """#!/bin/sh
case "$*" in *" pip "*) exit 0 ;; esac
exec {python} "$@"
"""
# Of cores that others share. A GPU's are its own.
MORE_TIME = {"GPU_SESSION_BUDGET": "1200", "GPU_SESSION_LIMIT": "400"}
CUBIN = b"\x7fELF"  # all of one that the stand-in looks at


@pytest.fixture
def stand_in(simulator_library, request, tmp_path):
    """Returns the variables with which the stand-in is the driver, and a rehearsal is asked for."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = request.config.cache.mkdir("conformance")
    worlds.build_stand_in(worlds.build_simulator(folder), tmp_path)
    (tmp_path / "micro_kernels.cubin").write_bytes(CUBIN)
    return {
        "FP8GEMM_MICRO_KERNELS": str(tmp_path / "micro_kernels.cubin"),
        "JAX_PLATFORMS": "cpu",
        "LD_LIBRARY_PATH": str(tmp_path),
        gpu_check.REHEARSAL: "1",
    }


# ---- Steps ---------------------------------------------------------------------------------------


@pytest.fixture
def rehearsal(stand_in, tmp_path, monkeypatch):
    """Returns a function that runs steps by name."""
    for name, value in stand_in.items():
        monkeypatch.setenv(name, value)

    def run(names, budget_s: float = 300, **limits: float):
        out = tmp_path / "out"
        by_name = {step.name: step for step in gpu_check.steps(out)}
        chosen = [by_name[name] for name in names]
        chosen = [dataclasses.replace(s, limit_s=limits.get(s.name, s.limit_s)) for s in chosen]
        gpu_check.check(chosen, out, budget_s, {})
        lines = (out / "experiments.jsonl").read_text().splitlines()
        outcomes = {
            step["step"]: step["outcome"]
            for step in json.loads((out / "gpu-check.json").read_text())["steps"]
        }
        return outcomes, [json.loads(line) for line in lines], out

    return run


@pytest.mark.slow
def test_a_hanging_and_a_faulting_experiment_cost_only_themselves(rehearsal, monkeypatch):
    monkeypatch.setenv("STAND_IN_HANGS", "tma_store")
    monkeypatch.setenv("STAND_IN_FAULTS", "register_budgets")
    names = ("clusters_that_fit", "store_past_a_row", "newest_nvrtc", "load_from_1")
    outcomes, found, _ = rehearsal(names, store_past_a_row=8)
    assert list(outcomes.values()) == ["failed", "timed out", "passed", "passed"]
    assert [x["got"] for x in found] == [
        "exit status 77",
        "no end within 8 s",
        "the model's bytes",
        "error 715",
    ]
    assert found[0]["expected"] == "66 of 2, 31 of 4, 15 of 8"


# ---- The calls of .ci/gpu-session ----------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the sources, whose build folder is its own."""
    copy = tmp_path_factory.mktemp("session") / "checkout"
    others = shutil.ignore_patterns(
        "build", "dist", "out", ".*cache", "__pycache__", ".venv", ".git"
    )
    shutil.copytree(ROOT, copy, ignore=others)
    return copy, make_tools(copy / "tools", PYTHON_WITHOUT_PIP.format(python=sys.executable))


@pytest.mark.slow
def test_rehearsed_first_call(checkout, stand_in):
    """Every experiment, the least risky first, is as expected; every family's numerics pass."""
    run, files = make_call(*checkout, 1, {**stand_in, **MORE_TIME})
    results = json.loads(files["gpu-check.json"].read_text())["steps"]
    wrong = [result for result in results if result["outcome"] != "passed"]
    assert run.returncode == 0 and wrong == [], run.stdout + run.stderr
    steps = [s for s in gpu_check.steps(Path()) if s.part in ("experiments", "golden", "numerics")]
    assert [(r["part"], r["step"]) for r in results] == [(s.part, s.name) for s in steps]
    assert all(result["passed"] for result in results if result["part"] == "numerics")
    names = [step.name for step in steps if step.part == "experiments"]
    assert names[-2:] == ["store_from_1", "split_k_repeated"]
    found = [json.loads(line) for line in files["experiments.jsonl"].read_text().splitlines()]
    assert [each["experiment"] for each in found] == names
    assert all(each["got"] == each["expected"] for each in found)
    golden = json.loads(files["stand-in.json"].read_text())
    assert set(golden["cases"]) == set(worlds.all_cases())


@pytest.mark.slow
def test_rehearsed_second_call(checkout, simulator_library):
    """It fails by what nothing but a GPU gives: a table of tuned kernels.

    Without the stand-in, of which NVRTC wants more than there is.
    """
    environment = {gpu_check.REHEARSAL: "1", "JAX_PLATFORMS": "cpu"}
    run, files = make_call(*checkout, 2, environment)
    assert run.returncode == 1
    assert re.findall(r"cannot stat '(.*?)'", run.stderr) == ["build/tuned.json"]
    content = record.load(files["record.json"])
    assert len(content["cases"]) > 5 and content["environment"]["platform"] == "cpu"
    assert {case["results"]["ours"]["status"] for case in content["cases"]} == {"measured"}
    assert "## " in files["report.md"].read_text()
    tuned = json.loads(files["tuned.measurements.json"].read_text())
    assert len(tuned["problems"]) == 1
    assert run.stdout.count("too large to simulate") > 20


@pytest.mark.slow
def test_without_a_gpu_the_second_call_says_so(checkout):
    """As it is run on a GPU: each command takes its options, and refuses in a line."""
    run, files = make_call(*checkout, 2, {})
    assert run.returncode == 1 and "Traceback" not in run.stdout + run.stderr
    assert "bench: JAX has no GPU here" in run.stdout and "tune: " in run.stdout
    assert set(files) == {"install-2.log", "logs.tar.gz"}
