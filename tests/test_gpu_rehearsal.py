# SPDX-License-Identifier: Apache-2.0
"""Rehearses what a GPU will run first, on the simulator behind a stand-in for libcuda."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / ".ci"), str(ROOT / "tests/conformance")]

import gpu_check  # noqa: E402
import worlds  # noqa: E402

CUBIN = b"\x7fELF"  # all of one that the stand-in looks at


@pytest.fixture
def rehearsal(simulator_library, request, tmp_path, monkeypatch):
    """Returns a function that runs steps by name where the stand-in is the driver."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = request.config.cache.mkdir("conformance")
    worlds.build_stand_in(worlds.build_simulator(folder), tmp_path)
    (tmp_path / "micro_kernels.cubin").write_bytes(CUBIN)
    monkeypatch.setenv("FP8GEMM_MICRO_KERNELS", str(tmp_path / "micro_kernels.cubin"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv(gpu_check.REHEARSAL, "1")

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


@pytest.mark.slow
def test_every_experiment_and_the_golden_file(rehearsal):
    """In the order of the plan, the least risky first, and each as expected."""
    names = [step.name for step in gpu_check.steps(Path()) if step.part in gpu_check.PARTS[:2]]
    outcomes, found, out = rehearsal(names)
    assert outcomes == dict.fromkeys(names, "passed"), found
    assert [x["experiment"] for x in found] == names[:-1] == list(gpu_check.EXPERIMENTS)
    assert names[-3:] == ["store_from_1", "split_k_repeated", "golden"]
    assert all(x["got"] == x["expected"] and x["seconds"] < 60 for x in found)
    content = json.loads((out / "golden/stand-in.json").read_text())
    assert set(content["cases"]) == set(worlds.all_cases())
