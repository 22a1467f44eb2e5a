# SPDX-License-Identifier: Apache-2.0
"""Tuning: operands of every kind, what is measured and kept, refusals; dry in the simulator."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_fp8gemm._src.native import environment, gemm_problem, tuned
from jax_fp8gemm._src.native.tuned import Timed
from jax_fp8gemm._src.native.version import __version__
from jax_fp8gemm._src.tools import cli

# Small problems of every kind, with tails.
WORDS = (
    "64x136x256",
    "40x72x300:result=f32:rows:accumulate",
    "ragged:70x136x256:groups=3",
    "contiguous:300x136x256:groups=2",
    "masked:70x136x256:groups=2:expected=40",
    "masked:70x136x256:groups=2:expected=40:unspecified",
    "k_grouped:72x136x500:groups=3:accumulate",
)
GPU = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def tune(extension):
    """The module, which needs the extension."""
    from jax_fp8gemm._src.tools.tuning import tune as tune_lib

    return tune_lib


@pytest.fixture
def tune_operands(extension):
    """The module, which needs the extension."""
    from jax_fp8gemm._src.tools.tuning import operands as tuning_operands

    return tuning_operands


def _machine(tune, gpu=GPU):
    return tune.Machine(gpu, "580.1, CUDA 13.0", "13.0", "by hand", ())


def _measured(tune, word="64x136x256", **times):
    """Returns measurements of configurations, the model's choice first."""
    results = tuple(
        tune.Result(f"1d2d.m64n{name[1:]}.w1.s7.c1x1.e4m3.e4m3.bf16", 1.0, (time,) if time else ())
        for name, time in times.items()
    )
    return tune.Measured(gemm_problem.parse(word), results)


@pytest.mark.parametrize(
    ("word", "want"),
    [
        ("8x8x8", None),
        ("ragged:7x8x8:groups=3", [3, 2, 2]),
        ("ragged:2x8x8:groups=3", [1, 1, 0]),
        ("masked:9x8x8:groups=2:expected=4", [4, 4]),
        ("masked:9x8x8:groups=2", [9, 9]),
        ("contiguous:300x8x8:groups=2", [0] * 256 + [1] * 44),
        ("k_grouped:8x8x300:groups=2", [256, 44]),
        ("k_grouped:8x8x128:groups=2", [128, 0]),
    ],
)
def test_groups_are_equal(tune_operands, word, want):
    got = tune_operands.group_data(gemm_problem.parse(word))
    assert got is None if want is None else got.tolist() == want


@pytest.mark.sampled(7)
@pytest.mark.parametrize("word", WORDS)
def test_dry_run_of_every_kind(tune, simulator_library, word):
    problem = gemm_problem.parse(word, num_sms=4)
    settings = tune.Settings(rounds=1, top=2, simulate=True)
    _, timer = tune.machine(simulate=True)
    (measured,) = tune.measure([problem], settings, timer)
    assert measured.problem == problem
    assert [r.failed for r in measured.results] == ["", ""]
    assert all(len(r.samples) == 1 and r.samples[0] > 0 for r in measured.results)
    assert measured.results[0].predicted <= measured.results[1].predicted
    assert measured.entry().best.microseconds <= measured.entry().runner_up.microseconds


def test_wrong_product_is_no_contender(tune, tune_operands, simulator_library, monkeypatch):
    real = tune_operands.reference

    def reference(problem, given):
        out = real(problem, given)
        return out.at[0].set(out[0] * 1.5)

    monkeypatch.setattr(tune_operands, "reference", reference)
    settings = tune.Settings(rounds=1, top=1, simulate=True)
    (measured,) = tune.measure(
        [gemm_problem.parse("64x136x256", num_sms=4)], settings, tune.machine(simulate=True)[1]
    )
    assert "wrong result" in measured.results[0].failed
    assert measured.entry() is None


def test_error_sees_one_wrong_row_and_not_unspecified_ones(tune_operands):
    problem = gemm_problem.parse("masked:4x8x8:groups=2:expected=2:unspecified")
    expected = jnp.ones((8, 8))
    padding = (np.arange(8) % 4 >= 2)[:, None]
    out = jnp.where(padding, jnp.nan, expected)
    assert tune_operands.relative_error(problem, out, expected) == 0
    assert tune_operands.relative_error(problem, out.at[4].set(0), expected) > 0.05
    assert not tune_operands.relative_error(problem, out.at[4].set(jnp.nan), expected) <= 1


def test_kernels_of_others_are_not_counted(tune, monkeypatch):
    timer = tune.timers.CuptiTimer.__new__(tune.timers.CuptiTimer)
    kernels = [("sm90_fp8_gemm_1d2d", 2e-6), ("loop_transpose_fusion", 9e-6)]
    monkeypatch.setattr(type(timer), "kernels", lambda self, call: kernels)
    assert tune._seconds(timer, None) == 2e-6
    del kernels[0]
    with pytest.raises(RuntimeError, match="none of our kernels, but .*transpose"):
        tune._seconds(timer, None)


def test_budget_ends_the_run(tune, simulator_library):
    said = []
    settings = tune.Settings(simulate=True, deadline=0.0)
    problems = [gemm_problem.parse("64x136x256", num_sms=4)]
    assert list(tune.measure(problems, settings, None, said.append)) == []
    assert said == ["64x136x256: not reached"]
    large = [gemm_problem.parse("4096x4096x4096", num_sms=4)]
    assert list(tune.measure(large, tune.Settings(simulate=True), None, said.append)) == []
    assert said[1] == "4096x4096x4096: too large to simulate"


def test_table_is_extended(tune, extension, tmp_path):
    path = tmp_path / "h100.json"
    tune.extend_table(path, _machine(tune), [_measured(tune, n128=3.0, n96=2.0, n64=None)])
    tune.extend_table(path, _machine(tune), [_measured(tune, "8x136x256", n128=1.0)])
    table = tuned.read(path)
    assert (table.gpu, table.package, table.nvrtc) == (GPU, __version__, "13.0")
    first = table.entries[gemm_problem.parse("64x136x256")]
    key = "1d2d.m64n{}.w1.s7.c1x1.e4m3.e4m3.bf16"
    assert first.best == Timed(key.format(96), 2.0)
    assert first.runner_up == first.model == Timed(key.format(128), 3.0)
    assert table.entries[gemm_problem.parse("8x136x256")].runner_up is None
    tune.extend_table(path, _machine(tune), [_measured(tune, n128=1.5, n96=2.0)])
    table = tuned.read(path)
    assert table.entries[gemm_problem.parse("64x136x256")].best.microseconds == 1.5
    assert len(table.entries) == 2


def test_table_is_left_alone_where_it_is_not_of_this_gpu(tune, tmp_path):
    path = tmp_path / "h100.json"
    tune.extend_table(path, _machine(tune), [_measured(tune, n128=3.0)])
    text = path.read_text()
    with pytest.raises(tune.CannotTuneError, match="is left alone: it is for NVIDIA H100"):
        tune.extend_table(path, _machine(tune, "NVIDIA H200"), [_measured(tune, n128=3.0)])
    assert path.read_text() == text
    path.write_text("{")
    with pytest.raises(tuned.TableError, match="h100.json"):
        tune.extend_table(path, _machine(tune), [_measured(tune, n128=3.0)])


def test_simulated_times_become_no_table(tune, tmp_path):
    path = tmp_path / "sim.json"
    machine, _ = tune.machine(simulate=True)
    with pytest.raises(tune.CannotTuneError, match="simulator"):
        tune.extend_table(path, machine, [_measured(tune, n128=3.0)])
    assert not path.exists()


def test_measurements_are_read_as_written(tune, tmp_path):
    path = tmp_path / "x.measurements.json"
    measured = [_measured(tune, n128=3.0, n96=None)]
    written = tune.measurements(_machine(tune), False, measured)
    tune.save(path, written)
    assert tune.load(path) == written


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda c: c.pop("machine"), "machine"),
        (lambda c: c.__setitem__("format", 7), "format must be 1"),
        (lambda c: c["machine"].pop("gpu"), "gpu"),
        (lambda c: c["problems"][0]["problem"].__setitem__("m", 0), "m must be at least 1"),
        (lambda c: c["problems"][0]["results"][0].pop("config"), "config"),
    ],
)
def test_damaged_measurements_are_an_error(tune, tmp_path, damage, text):
    path = tmp_path / "x.measurements.json"
    tune.save(path, tune.measurements(_machine(tune), False, [_measured(tune, n128=3.0)]))
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{path}: .*{text}"):
        tune.load(path)


# ---- The command ---------------------------------------------------------------------------------


def _has_gpu() -> bool:
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False


def test_a_gpu_that_becomes_hot_is_a_warning_once(tune, monkeypatch):
    hot = {"slowdown_reasons": "0x40"}
    monkeypatch.setattr(tune.gpu_state, "query_gpu", lambda: hot)
    where = tune.seen_after(_machine(tune))
    assert [text for text in where.warnings if "thermal slowdown" in text] == [where.warnings[-1]]
    assert tune.seen_after(where) == where


def test_wall_clock_on_a_gpu_is_a_warning(tune, monkeypatch):
    info = {"compute_capability": (9, 0), "driver_version": 12090}
    core = SimpleNamespace(device_info=lambda: info, nvrtc_version=lambda: (12, 9))
    monkeypatch.setattr(tune.extension, "core", lambda: core)
    monkeypatch.setattr(tune.extension, "planning_gpu", lambda backend: "NVIDIA H100")
    monkeypatch.setattr(tune.timers, "best_timer", lambda platform: tune.timers.WallTimer())
    where, _ = tune.machine(simulate=False)
    assert tune.timers.WITHOUT_CUPTI in where.warnings


def test_command_refuses_without_a_gpu(extension, tmp_path, monkeypatch, capsys):
    if _has_gpu():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tune", "64x136x256"]) == 1
    error = capsys.readouterr().err
    assert "tune: there is no usable Hopper GPU" in error and "--simulate" in error
    assert list(tmp_path.iterdir()) == []


def test_command_simulates(simulator_library, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["tune", "64x136x256", "--simulate", "--rounds", "1", "--top", "2"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "WARNING: simulated" in text and "no table is written" in text
    assert list(tmp_path.iterdir()) == []
    assert cli.main([*arguments, "--output", "dry.json"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["dry.measurements.json"]
    assert json.loads((tmp_path / "dry.measurements.json").read_text())["simulated"] is True


def test_command_writes_table_and_measurements(tune, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "machine", lambda simulate: (_machine(tune), None))
    measured = _measured(tune, n128=3.0, n96=2.0)
    monkeypatch.setattr(tune, "measure", lambda *args: iter([measured]))
    monkeypatch.setenv(environment.TUNED, "")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tune", "64x136x256"]) == 0
    table = tmp_path / "nvidia-h100-80gb-hbm3.json"
    assert table.exists() and table.with_suffix(".measurements.json").exists()
    assert "the model's choice took 1.500 times as long" in capsys.readouterr().out
    monkeypatch.setenv(environment.TUNED, str(tmp_path / "mine.json"))
    assert cli.main(["tune", "64x136x256"]) == 0
    assert (tmp_path / "mine.json").read_text() != ""
    (tmp_path / "mine.json").write_text("{")
    assert cli.main(["tune", "64x136x256"]) == 1
    assert "mine.json" in capsys.readouterr().err
