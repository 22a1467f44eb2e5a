# SPDX-License-Identifier: Apache-2.0
"""The command `bench`: small runs of the whole instrument on the CPU, and its errors."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jax_fp8gemm._src.tools import cli, cli_bench
from jax_fp8gemm._src.tools.tuning import timers
from jax_fp8gemm._src.tools.tuning.operands import MAX_ERROR

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # behind the installed package

import benchmarks.__main__ as command  # noqa: E402
from benchmarks import (  # noqa: E402
    cases,
    environment,
    extras,
    grouped_peers,
    host,
    limits,
    operands,
    record,
    runner,
    tables,
)


def _command(*arguments: object) -> subprocess.CompletedProcess:
    # What is tested is the instrument: its programs need compile fast, not run fast.
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "jax_fp8gemm", "bench", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environ, cwd=ROOT
    )


@pytest.mark.slow
def test_what_a_call_costs(extension, tmp_path, monkeypatch, capsys):
    measured = host.measure(shapes=1, calls=2)
    assert all(min(each.values()) > 0 for each in measured.values())
    monkeypatch.setattr(host, "measure", lambda: measured)
    assert command.main(["--suites", "host", "--output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "host.json").read_text()) == measured
    assert capsys.readouterr().out.count("\n") == 2 + len(measured)
    with pytest.raises(SystemExit, match="2"):
        command.main(["--suites", "host", "smoke"])


@pytest.mark.slow
def test_run_on_a_cpu(extension, tmp_path):
    run = _command("--suites", "smoke", "--rounds", 2, "--no-extras", "--output", tmp_path)
    assert run.returncode == 0, run.stderr[-4000:]
    content = record.load(tmp_path / "record.json")
    assert content["environment"]["platform"] == "cpu"
    assert "WARNING: no GPU" in run.stdout
    for case in content["cases"]:
        result = case["results"]["ours"]
        assert result["status"] == "measured" and len(result["samples_s"]) == 2, result
        assert case["results"]["ours_sim"]["status"] in ("measured", "missing"), case
        assert case["results"]["jax_bf16"]["status"] == "measured", case
    assert {case["kind"] for case in content["cases"]} >= {"ragged", "masked", "k_grouped"}
    assert tables.CPU_NOTE in (tmp_path / "report.md").read_text()
    again = _command("--report", tmp_path / "record.json", "--output", tmp_path / "again")
    assert again.returncode == 0
    assert (tmp_path / "again/report.md").read_text() == (tmp_path / "report.md").read_text()


def test_spent_budget_is_recorded(extension, tmp_path):
    arguments = ("--suites", "smoke", "--budget", 0, "--peers", "jax_f32", "--output", tmp_path)
    run = _command(*arguments)
    assert run.returncode == 0, run.stderr[-4000:]
    content = record.load(tmp_path / "record.json")
    assert set(content["peers"]) == {"ours", "jax_f32"}
    statuses = {r["status"] for c in content["cases"] for r in c["results"].values()}
    assert statuses == {"not reached"}


def test_unknown_peer_is_named(capsys):
    assert command.main(["--peers", "nobody"]) == 2
    assert capsys.readouterr().err.startswith("bench: no peer nobody here: choose of ours, ")


def test_numbers_of_a_cpu_do_not_pass_for_those_of_a_gpu(capsys):
    if jax.default_backend() == "gpu":
        pytest.skip("there is one")
    assert command.main(["--require-gpu", "--suites", "smoke"]) == 2
    assert "JAX has no GPU here" in capsys.readouterr().err


def test_record_that_cannot_be_read_is_named(capsys, tmp_path):
    path = tmp_path / "x.json"
    for text in (None, "{"):
        if text:
            path.write_text(text)
        assert command.main(["--report", str(path)]) == 2
        assert str(path) in capsys.readouterr().err


# ---- A run on a GPU, with stand-ins for what it needs --------------------------------------------

_GPU_STATE = {"sm_clock_mhz": "1500", "slowdown_reasons": "0x40"}


@pytest.fixture
def gpu(extension, monkeypatch):
    """Has the benchmarks take the CPU for a GPU that is too hot, and on which ours does not run."""
    timer = timers.CuptiTimer(SimpleNamespace())
    monkeypatch.setattr(timer, "kernels", lambda call: [("product", _seconds(call))])
    monkeypatch.setattr(runner.timers, "best_timer", lambda platform: timer)
    hopper = environment.Environment("gpu", "Hot", "1", {}, "abc", {}, ())
    monkeypatch.setattr(environment, "describe", lambda: hopper)
    monkeypatch.setattr(environment, "query_gpu", lambda: _GPU_STATE)
    monkeypatch.setattr(limits, "_COPY_BYTES", {"gpu": 1 << 20})
    monkeypatch.setattr(limits, "_SQUARE", {"gpu": 256})


def _seconds(call) -> float:
    call.finish(call.start())
    return 1e-6


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() == "gpu", reason="ours runs")
def test_what_fails_on_a_gpu_is_in_record_report_and_exit_status(
    gpu, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(command, "suite", lambda name: cases.suite(name)[:1])
    chosen = ("--peers", "jax_bf16", "jax_scaled_matmul", "deep_gemm")
    arguments = ("--suites", "smoke", "--rounds", "2", "--no-extras", "--output", str(tmp_path))
    assert command.main([*arguments, *chosen]) == 1
    assert "ours failed on few_rows" in capsys.readouterr().err
    content = record.load(tmp_path / "record.json")
    (entry,) = content["cases"]
    statuses = {name: result["status"] for name, result in entry["results"].items()}
    assert statuses == {
        "ours": "failed",
        "jax_bf16": "measured",
        "jax_scaled_matmul": "failed",
        "deep_gemm": "missing",
    }
    assert entry["results"]["jax_bf16"]["notes"]["kernels"] == ["product"]
    assert entry["gpu_under_load"] == _GPU_STATE
    (warning,) = content["environment"]["warnings"]
    assert "slowed down during the run: thermal slowdown (hardware)" in warning
    assert set(content["limits"]) == {"copy_bytes", "fp8_flops", "bf16_flops"}
    text = (tmp_path / "report.md").read_text()
    assert "DeepGEMM | block-scaled fp8 | missing: " in text and "| missing |" in text
    assert "## Failed\n\n* jax_fp8gemm on few_rows" in text and "## Targets" in text


def test_wall_clock_on_a_gpu_is_a_warning(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(runner.timers, "best_timer", lambda platform: timers.WallTimer())
    content = runner.Run(runner.Settings([], tmp_path)).record
    assert ["CUPTI does not start" in text for text in content["environment"]["warnings"]] == [True]


def test_help_of_the_command_is_the_benchmarks():
    run = _command("--help")
    assert run.returncode == 0 and "--suites" in run.stdout and "headline" in run.stdout


def test_without_the_repository_the_command_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "jax_fp8gemm/_src/tools/cli_bench.py"
    monkeypatch.setattr(cli_bench, "__file__", str(elsewhere))
    assert cli.main(["bench", "--suites", "smoke"]) == 2
    assert "checkout of jax_fp8gemm" in capsys.readouterr().err


@pytest.mark.slow
def test_a_wrong_grouped_product_is_failed(extension):
    """The check of a peer with groups can fail."""
    with_groups = [case for case in cases.suite("smoke") if case.problem.num_groups > 1]
    assert {case.problem.kind for case in with_groups} == set(grouped_peers.KINDS)
    for case in with_groups:
        given = operands.operands_for(case)
        right = given.reference.copy()
        assert given.error_of(right) <= MAX_ERROR
        assert given.error_of(np.roll(right, 1, axis=0)) > MAX_ERROR


@pytest.mark.slow
def test_steps_of_whole_layers(extension):
    """Both layers run on the CPU, and the report names them."""
    timer = timers.best_timer("cpu")
    steps = {"mlp": extras.mlp_steps(timer, "cpu"), "moe": extras.moe_steps(timer, "cpu")}
    for entries in steps.values():
        assert len(entries) == 2
        for entry in entries:
            assert set(entry["summary"]) == {"ours", "jax_bf16"} and not entry["failures"]
    text = tables._extras_text(steps, {})
    assert "Gated MLP, 16 tokens" in text and "Mixture of experts, 4 experts, 16 tokens" in text
