# SPDX-License-Identifier: Apache-2.0
"""The targets beside invented records: met, missed, not measured."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))  # behind the installed package

from benchmarks import targets  # noqa: E402
from jax_fp8gemm._src.tools.tuning import sampling  # noqa: E402


def _result(seconds: float) -> dict:
    return {
        "status": "measured",
        "samples_s": [seconds],
        "summary": sampling.summary([seconds, seconds]),
    }


def _case(m: int, k: int, kind: str = "forward", **seconds: float) -> dict:
    results = {name: _result(value) for name, value in seconds.items()}
    results["absent"] = {"status": "missing", "reason": "x"}
    return {"m": m, "n": 1, "k": k, "kind": kind, "flops": 100, "bytes": 10, "results": results}


def _record(*cases: dict, platform: str = "gpu", **extras: dict) -> dict:
    limits = {"copy_bytes": {"per_s": 10.0}, "fp8_flops": {"per_s": 100.0}}
    return {
        "environment": {"platform": platform},
        "limits": limits,
        "cases": list(cases),
        "extras": extras,
    }


def _row(record: dict, what: str) -> str:
    (line,) = (line for line in targets.report(record).splitlines() if what in line)
    return line


def test_the_mean_may_be_met_where_a_row_is_missed():
    record = _record(_case(64, 128, ours=1, deep_gemm=2), _case(64, 128, ours=1, deep_gemm=0.9))
    assert "| 1.34 | 2 | met |" in _row(record, "DeepGEMM's time over ours, geometric mean")
    assert "| 0.90 | 2 | **missed** |" in _row(record, "every row")


def test_only_the_rows_that_a_target_names_count():
    few = _case(128, 128, ours=1.25)
    record = _record(few, _case(4096, 7168, ours=2), _case(200, 100, ours=9))
    assert "| 0.80 | 1 | **missed** |" in _row(record, "copy bandwidth")
    assert "| 0.50 | 1 | **missed** |" in _row(record, "M = 4096")
    assert "not measured" in _row(record, "weight gradients")
    record = _record(_case(512, 512, "wgrad", ours=1.4), _case(9, 9, "k_grouped", ours=1.2))
    assert "| 0.71 | 2 | met |" in _row(record, "weight gradients")


@pytest.mark.parametrize(("us", "verdict"), [(4.0, "met"), (6.0, "**missed**")])
def test_host_cost_is_a_ceiling(us, verdict):
    record = _record(host_cost={"added_us": us})
    assert verdict in _row(record, "host cost")


def test_nothing_measured_is_never_met():
    text = targets.report(_record(_case(64, 128, deep_gemm=1)))
    assert text.count("not measured") == len(targets.TARGETS) and "| met |" not in text


def test_a_cpu_meets_and_misses_none():
    assert targets.report(_record(_case(64, 128, ours=1, deep_gemm=2), platform="cpu")) == ""
