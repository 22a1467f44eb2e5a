# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' pure parts: samples, timers, cases, environment."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # behind the installed package

from benchmarks import cases, environment  # noqa: E402
from jax_fp8gemm._src.tools.tuning import sampling, timers  # noqa: E402

# ---- Samples -----------------------------------------------------------------------------------


def test_summary():
    got = sampling.summary([4.0, 1.0, 2.0, 3.0, 10.0])
    assert got["median"] == 3 and got["minimum"] == 1
    assert (got["low_quartile"], got["high_quartile"]) == (2, 4)
    assert got["spread"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("bad", [[], [0.0], [-1.0], [math.nan], [1.0, math.inf]])
def test_summary_refuses_what_is_no_time(bad):
    with pytest.raises(ValueError, match="samples"):
        sampling.summary(bad)


def test_ratio_is_taken_round_by_round():
    """A clock that halves in the middle of the run changes both, and not their ratio."""
    ours, theirs = [1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 6.0, 6.0]
    assert sampling.paired_ratio(ours, theirs)["median"] == 3
    assert sampling.paired_ratio(ours, [4.5])["median"] == 3


def test_geometric_mean():
    assert sampling.geometric_mean([1, 4]) == pytest.approx(2)
    assert sampling.geometric_mean([]) is None


def test_rounds_are_interleaved_and_reversed():
    assert sampling.interleave(["a", "b", "c"], 3) == list("abccbaabc")


def test_a_failing_sampler_is_reported_and_not_called_again():
    calls = []

    def broken():
        calls.append(1)
        raise RuntimeError("no")

    taken, failures = sampling.sample_rounds({"good": lambda: 1.0, "bad": broken}, 4)
    assert taken == {"good": [1.0] * 4} and failures == {"bad": "RuntimeError: no"}
    assert len(calls) == 1


def test_sampling_ends_with_a_whole_round():
    left = iter([True, False])
    taken, _ = sampling.sample_rounds({"a": lambda: 1.0, "b": lambda: 2.0}, 9, lambda: next(left))
    assert taken == {"a": [1.0] * 2, "b": [2.0] * 2}


def test_roofline():
    assert sampling.roofline_seconds(100, 10, peak_flops=50, bandwidth=10) == 2
    assert sampling.roofline_seconds(100, 30, peak_flops=50, bandwidth=10) == 3


# ---- Timers ------------------------------------------------------------------------------------


class _Cupti:
    """Stands for jaxlib's binding: reports the given kernels once per session."""

    def __init__(self, *kernels: tuple[str, float]) -> None:
        self.kernels, self.log = list(kernels), []

    def _cupti_init(self) -> None:
        self.log.append("init")

    def _cupti_get_timings(self, finalize: bool) -> list[tuple[str, float]]:
        self.log.append("read")
        return self.kernels


def _call(log: list, failure: Exception | None = None) -> SimpleNamespace:
    def start():
        log.append("start")
        if failure:
            raise failure

    return SimpleNamespace(start=start, finish=lambda _: log.append("finish"))


@pytest.fixture
def no_flush(monkeypatch):
    monkeypatch.setattr(timers, "Flusher", lambda: lambda: None)


def test_kernel_durations_are_summed(no_flush):
    cupti = _Cupti(("product", 0.25), ("rounding", 0.5))  # milliseconds
    timer = timers.CuptiTimer(cupti)
    assert timer.sample(_call(cupti.log)) == pytest.approx(0.75e-3)
    assert cupti.log == ["init", "start", "finish", "read"]


def test_a_call_without_kernels_has_no_time(no_flush):
    with pytest.raises(RuntimeError, match="no kernel"):
        timers.CuptiTimer(_Cupti()).sample(_call([]))


def test_profiling_ends_when_a_call_fails(no_flush):
    cupti = _Cupti(("product", 1.0))
    with pytest.raises(ArithmeticError):
        timers.CuptiTimer(cupti).sample(_call(cupti.log, ArithmeticError()))
    assert cupti.log == ["init", "start", "read"]


def test_wall_clock_flushes_before_it_starts():
    log: list[str] = []
    assert timers.WallTimer(lambda: log.append("flush")).sample(_call(log)) > 0
    assert log == ["flush", "start", "finish"]


# ---- Cases -------------------------------------------------------------------------------------


def test_suites():
    for name in cases.SUITES:
        chosen = cases.suite(name)
        assert chosen and len({case.key for case in chosen}) == len(chosen)
        assert {case.suite for case in chosen} == {name}
    with pytest.raises(ValueError, match="nothing"):
        cases.suite("nothing")


def test_published_rows_cover_the_tests_cases():
    import cases as test_cases

    shapes = {(case.m, case.n, case.k) for case in cases.suite("deepgemm")}
    assert {(c.m, c.n, c.k) for c in test_cases.PREFILL_CASES} <= shapes
    assert len(shapes) == 18
    counts = {
        name: len(cases.suite(name)) for name in ("contiguous", "masked", "wgrad", "k_grouped")
    }
    assert counts == {"contiguous": 6, "masked": 12, "wgrad": 9, "k_grouped": 5}


def test_sweeps_span_rows_and_groups():
    rows = {case.m for case in cases.suite("scaling")}
    groups = {case.num_groups for case in cases.suite("groups")}
    assert (min(rows), max(rows)) == (1, 16384) and (min(groups), max(groups)) == (1, 256)


def test_work_of_a_case():
    case = cases.BenchCase("s", "n", 128, 256, 384)
    assert case.flops == 2 * 128 * 256 * 384
    assert case.bytes == (128 + 256) * 384 + 4 * (128 * 3 + 2 * 3) + 2 * 128 * 256
    wgrad = cases.BenchCase("s", "n", 128, 256, 384, "wgrad")
    assert wgrad.bytes == (128 + 256) * (384 + 12) + 8 * 128 * 256


def test_work_of_groups():
    """Rows of all groups, of one masked group, K of all groups."""
    flops = 2 * 4 * 8192 * 4096 * 7168
    case = next(c for c in cases.suite("contiguous") if c.num_groups == 4 and c.n == 4096)
    assert case.flops == flops and case.m == 4 * 8192
    masked = next(c for c in cases.suite("masked") if c.num_groups == 4 and c.n == 4096)
    assert masked.flops == 2 * 4 * 256 * 4096 * 7168 and masked.m == 256
    wgrad = next(c for c in cases.suite("k_grouped") if c.num_groups == 8)
    assert wgrad.flops == 2 * 8 * 7168 * 4096 * 4096 and wgrad.problem.accumulate


def test_headline_has_every_kind_and_begins_with_the_telling_rows():
    chosen = cases.suite("headline")
    kinds = {"forward", "wgrad", "ragged", "contiguous", "masked", "k_grouped"}
    assert {case.kind for case in chosen} == kinds
    assert {case.m for case in chosen[:4]} == {4096, 1, 16}


# ---- Environment -------------------------------------------------------------------------------

_SMI = "NVIDIA H100 80GB HBM3, 580.1, 9.0, 345, 2619, 1980, 70.1, 700.0, 30, 0, 0x0000000000000001"


def _run_of(text: str, status: int = 0):
    return lambda *_, **__: SimpleNamespace(returncode=status, stdout=text, stderr="")


def test_quiet_hopper_gpu_gives_no_warning():
    gpu = environment.query_gpu(_run_of(_SMI))
    assert gpu["driver"] == "580.1" and gpu["sm_clock_mhz"] == "345"
    assert environment.warnings_about(gpu, num_processes=1) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compute_capability": "8.0"}, "no Hopper GPU"),
        ({"utilization_percent": "55"}, "busy: 55 %"),
        ({"slowdown_reasons": "0x0000000000000040"}, "thermal slowdown"),
        ({"slowdown_reasons": "0x0000000000000080"}, "power brake"),
    ],
)
def test_doubtful_gpu_gives_a_warning(change, message):
    gpu = environment.query_gpu(_run_of(_SMI)) | change
    (warning,) = environment.warnings_about(gpu)
    assert message in warning


def test_the_gpu_that_jax_sees_is_asked(monkeypatch):
    """nvidia-smi shows all GPUs of a machine, whatever CUDA shows of them."""
    asked = []

    def run(command, **_):
        asked.append(command[1])
        return SimpleNamespace(returncode=0, stdout=_SMI, stderr="")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment.query_gpu(run)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    environment.query_gpu(run)
    environment.other_processes(run)
    assert asked == ["--id=0", "--id=3", "--id=3"]


def test_an_older_driver_is_asked_in_its_words():
    def run(command, **_):
        old = "clocks_throttle_reasons" in command[2]
        return SimpleNamespace(returncode=0 if old else 2, stdout=_SMI if old else "", stderr="")

    assert environment.query_gpu(run)["slowdown_reasons"] == "0x0000000000000001"


def test_power_cap_is_ordinary():
    gpu = {"slowdown_reasons": hex(environment.POWER_CAP)}
    assert environment.slowdowns(gpu) == []


def test_other_processes_and_silence_give_a_warning():
    gpu = environment.query_gpu(_run_of(_SMI))
    assert environment.other_processes(_run_of("11\n12\n")) == 2
    assert environment.warnings_about(gpu, 2) == ["2 processes use the GPU"]
    assert environment.query_gpu(_run_of("", 9)) == {}
    assert "nvidia-smi says nothing" in environment.warnings_about({})[0]
