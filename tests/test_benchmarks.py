# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' pure parts: samples, timers, cases, records, tables, plots."""

import copy
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # behind the installed package

from benchmarks import cases, environment, plots, record, tables  # noqa: E402
from jax_fp8gemm import _samples as samples  # noqa: E402
from jax_fp8gemm import _timers as timers  # noqa: E402

# ---- Samples -----------------------------------------------------------------------------------


def test_summary():
    got = samples.summary([4.0, 1.0, 2.0, 3.0, 10.0])
    assert got["median"] == 3 and got["minimum"] == 1
    assert (got["low_quartile"], got["high_quartile"]) == (2, 4)
    assert got["spread"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("bad", [[], [0.0], [-1.0], [math.nan], [1.0, math.inf]])
def test_summary_refuses_what_is_no_time(bad):
    with pytest.raises(ValueError, match="samples"):
        samples.summary(bad)


def test_ratio_is_taken_round_by_round():
    """A clock that halves in the middle of the run changes both, and not their ratio."""
    ours, theirs = [1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 6.0, 6.0]
    assert samples.paired_ratio(ours, theirs)["median"] == 3
    assert samples.paired_ratio(ours, [4.5])["median"] == 3


def test_geometric_mean():
    assert samples.geometric_mean([1, 4]) == pytest.approx(2)
    assert samples.geometric_mean([]) is None


def test_rounds_are_interleaved_and_reversed():
    assert samples.interleave(["a", "b", "c"], 3) == list("abccbaabc")


def test_a_failing_sampler_is_reported_and_not_called_again():
    calls = []

    def broken():
        calls.append(1)
        raise RuntimeError("no")

    taken, failures = samples.sample_rounds({"good": lambda: 1.0, "bad": broken}, 4)
    assert taken == {"good": [1.0] * 4} and failures == {"bad": "RuntimeError: no"}
    assert len(calls) == 1


def test_sampling_ends_with_a_whole_round():
    left = iter([True, False])
    taken, _ = samples.sample_rounds({"a": lambda: 1.0, "b": lambda: 2.0}, 9, lambda: next(left))
    assert taken == {"a": [1.0] * 2, "b": [2.0] * 2}


def test_roofline():
    assert samples.roofline_seconds(100, 10, peak_flops=50, bandwidth=10) == 2
    assert samples.roofline_seconds(100, 30, peak_flops=50, bandwidth=10) == 3


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


def test_power_cap_is_ordinary():
    gpu = {"slowdown_reasons": hex(environment.POWER_CAP)}
    assert environment.slowdowns(gpu) == []


def test_other_processes_and_silence_give_a_warning():
    gpu = environment.query_gpu(_run_of(_SMI))
    assert environment.other_processes(_run_of("11\n12\n")) == 2
    assert environment.warnings_about(gpu, 2) == ["2 processes use the GPU"]
    assert environment.query_gpu(_run_of("", 9)) == {}
    assert "nvidia-smi says nothing" in environment.warnings_about({})[0]


# ---- Record ------------------------------------------------------------------------------------


def _measured(*seconds: float) -> dict:
    return {
        "status": "measured",
        "method": "made up",
        "samples_s": list(seconds),
        "summary": samples.summary(seconds),
    }


def _record(platform: str = "gpu") -> dict:
    """Returns a small record of invented numbers."""
    shape = {"m": 128, "n": 256, "k": 512, "kind": "forward", "flops": 2 << 24, "bytes": 1 << 18}
    peers = ("ours", "slow", "broken", "absent")
    described = {n: {"label": n.title(), "semantics": "s", "missing": ""} for n in peers}
    described["absent"]["missing"] = "absent is not installed"
    results = {
        "ours": _measured(1e-6, 1e-6),
        "slow": _measured(2e-6, 2e-6),
        "broken": {"status": "failed", "reason": "RuntimeError: it broke"},
        "absent": {"status": "missing", "reason": "absent is not installed"},
    }
    case = {"suite": "scaling", "name": "rows", **shape, "published": {"readme": 20}}
    return {
        "format": record.FORMAT,
        "created": "2026-01-02T03:04:05+00:00",
        "command": [],
        "environment": {
            "platform": platform,
            "device": "Invented",
            "driver": "1",
            "versions": {"jax": "0"},
            "commit": "abc",
            "clocks": {},
            "warnings": ["it is hot"],
        },
        "limits": {"copy_bytes": {"per_s": 1e12}, "fp8_flops": {"per_s": 1e14, "by": "slow"}},
        "peers": described,
        "cases": [case | {"results": results}],
        "extras": {"compile": {"failed": "no NVRTC"}},
    }


def test_record_round_trip(tmp_path):
    path = tmp_path / "new" / "record.json"
    record.save(_record(), path)
    assert record.load(path) == _record()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("format",), 7, "format must be 1"),
        (("environment", "platform"), "tpu", "platform"),
        (("environment", "driver"), 5, "environment.driver must be str"),
        (("cases", 0, "m"), "128", r"cases\[0\].m must be int"),
        (("cases", 0, "m"), True, r"cases\[0\].m must be int"),
        (("cases", 0, "results", "ours", "samples_s"), [], "samples_s is empty"),
        (("cases", 0, "results", "ours", "status"), "fine", "status must be one of"),
        (("cases", 0, "results", "broken", "reason"), "", "gives no reason"),
        (("cases", 0, "results", "stranger"), {"status": "measured"}, "'stranger', which is no"),
    ],
)
def test_damaged_record_is_refused(tmp_path, place, value, message):
    damaged = copy.deepcopy(_record())
    target = damaged
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    with pytest.raises(record.RecordError, match=message):
        record.validate(damaged)
    (tmp_path / "record.json").write_text(json.dumps(damaged))
    with pytest.raises(record.RecordError, match="record.json"):
        record.load(tmp_path / "record.json")


def test_file_that_is_no_record_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(record.RecordError, match="x.json: not JSON"):
        record.load(tmp_path / "x.json")


# ---- Tables and plots --------------------------------------------------------------------------


def test_report_of_a_gpu():
    text = tables.report(_record())
    row = next(line for line in text.splitlines() if line.startswith("| rows"))
    # 2^25 operations in 1 us; 2^18 bytes at 1 TB/s would take 0.26 us, the operations 0.34 us.
    expected = "| rows | 128 | 256 | 512 | 1.0 | 0.0% | 33.6 | 34% | 2.00 | failed | missing |"
    assert row == expected
    assert "| **2.00** |" in text
    assert "> Warning: it is hot" in text and tables.CPU_NOTE not in text
    assert "Absent: missing: absent is not installed" in text
    assert "Broken on rows 128x256x512: failed: RuntimeError: it broke" in text
    assert "| 128 | 256 | 512 | 34 | 20 |" in text
    assert "compile: no numbers: no NVRTC" in text


def test_report_of_a_cpu_says_so_and_compares_with_nothing_published():
    text = tables.report(_record("cpu"))
    assert tables.CPU_NOTE in text and "published" not in text and "of limit" not in text


def test_report_without_our_time():
    content = _record()
    content["cases"][0]["results"]["ours"] = {"status": "failed", "reason": "x"}
    record.validate(content)
    row = next(line for line in tables.report(content).splitlines() if line.startswith("| rows"))
    assert row == "| rows | 128 | 256 | 512 | failed |  |  |  | - | failed | missing |"


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = plots.draw(_record(), tmp_path)
    assert [path.name for path in drawn] == ["roofline.png", "ratios.png", "scaling.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_growth_with_groups_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    content = _record()
    content["cases"] = [
        content["cases"][0] | {"suite": "groups", "kind": "ragged", "num_groups": groups}
        for groups in (1, 4)
    ]
    names = [path.name for path in plots.draw(content, tmp_path)]
    assert names == ["roofline.png", "ratios.png", "groups.png"]


def test_no_plots_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plots.draw(_record(), tmp_path) == []
