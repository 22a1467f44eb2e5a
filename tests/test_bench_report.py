# SPDX-License-Identifier: Apache-2.0
"""Records of the benchmarks, and the tables and plots made of them."""

import copy
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))  # behind the installed package

from benchmarks import plots, record, tables  # noqa: E402
from jax_fp8gemm._src.tools.tuning import sampling  # noqa: E402

# ---- Record ------------------------------------------------------------------------------------


def _measured(*seconds: float) -> dict:
    return {
        "status": "measured",
        "method": "made up",
        "relative_error": 1e-6,
        "samples_s": list(seconds),
        "summary": sampling.summary(seconds),
    }


_NOT_APPLICABLE = {"status": "not applicable", "reason": "no such product"}


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
    case["gpu_under_load"] = {"sm_clock_mhz": "1500", "slowdown_reasons": "0x4"}
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
            "clocks": {"max_sm_clock_mhz": "1980"},
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
    assert "| Absent | s | missing: absent is not installed |  |" in text
    assert "| Slow | s | measured 1 | 1.0e-06 |" in text
    assert "Broken on rows 128x256x512: RuntimeError: it broke" in text
    assert "Timed by: made up." in text
    assert (
        "SM clock while ours ran: 1500 to 1500 MHz of 1980; held by the power cap on 1 of 1" in text
    )
    assert "| forward | 1 | 128 | 256 | 512 | 34 | 20 |" in text
    assert "compile: no numbers: no NVRTC" in text


def test_report_of_a_cpu_says_so_and_compares_with_nothing_published():
    text = tables.report(_record("cpu"))
    assert tables.CPU_NOTE in text and "published" not in text and "of limit" not in text


def test_groups_and_wide_spreads_are_in_the_table():
    content = _record()
    (case,) = content["cases"]
    results = case["results"] | {"slow": _measured(1e-6, 3e-6), "absent": _NOT_APPLICABLE}
    content["cases"] = [case | {"num_groups": 16, "kind": "masked", "results": results}]
    text = tables.report(content)
    assert "| rows | 16 | 128 | 256 | 512 | 1.0 | 0.0% | 33.6 | 34% | 2.00~ | failed |\n" in text
    assert "Not applicable: Absent (no such product)." in text


def test_a_product_that_xla_did_not_make_in_fp8_is_told():
    content = _record()
    notes = {"notes": {"rewritten_to_cublaslt_fp8": False}}
    content["cases"][0]["results"]["slow"] |= notes
    assert "| measured 1; 1 of them multiplied in a wider type" in tables.report(content)
    notes["notes"]["rewritten_to_cublaslt_fp8"] = True
    assert "in a wider type" not in tables.report(content)


def test_what_was_not_reached_is_named_once():
    content = _record()
    absent = {"status": "not reached", "reason": "the budget was spent"}
    left = content["cases"][0] | {"m": 7, "results": dict.fromkeys(content["peers"], absent)}
    content["cases"].append(left)
    text = tables.suite_table(content, "scaling")
    assert text.endswith("\n\nNot reached, 1 of 2: rows 7x256x512.") and "| 7 |" not in text
    assert tables.suite_table(content | {"cases": [left]}, "scaling").startswith(
        "Not reached, 1 of 1"
    )


def test_failures_of_one_reason_are_one_line():
    content = _record()
    content["cases"] *= 3
    lines = [line for line in tables.report(content).splitlines() if "it broke" in line]
    assert lines == ["* Broken on rows 128x256x512 and 2 more: RuntimeError: it broke"]


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
    content["cases"] = [case | {"suite": "small_groups"} for case in content["cases"]]
    assert [path.name for path in plots.draw(content, tmp_path)] == names


def test_no_plots_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plots.draw(_record(), tmp_path) == []
