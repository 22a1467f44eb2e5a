# SPDX-License-Identifier: Apache-2.0
"""`bench --compare`: what became slower than in an earlier record, and what cannot be compared."""

import copy
import sys

import pytest
from _source import ROOT

sys.path.append(str(ROOT))  # behind the installed package

import benchmarks.__main__ as command  # noqa: E402
from benchmarks import compare, record  # noqa: E402


def _case(name: str, *seconds: float) -> dict:
    measured = {"status": "measured", "method": "cupti", "samples_s": list(seconds), "summary": {}}
    extents = {"m": 64, "n": 64, "k": 64, "kind": "dense", "flops": 1, "bytes": 1}
    case = {"suite": "square", "name": name, "published": {}, "results": {"ours": measured}}
    return case | extents


def _record() -> dict:
    environment = {"platform": "gpu", "device": "NVIDIA H100", "driver": "580.1", "versions": {}}
    environment |= {"commit": "abc", "clocks": {}, "warnings": []}
    content = {"format": record.FORMAT, "created": "", "command": [], "environment": environment}
    content |= {"limits": {}, "peers": {"ours": {"label": "ours", "semantics": ""}}, "extras": {}}
    return content | {"cases": [_case("a", 1.0, 1.1, 5.0), _case("b", 2.0)]}


def _compared(monkeypatch, tmp_path, old: dict, new: dict) -> int:
    """Returns the exit status of a report on `new` beside `old`, without tables and plots."""
    monkeypatch.setattr(command, "_report", lambda content, folder: None)
    for name, content in (("old", old), ("new", new)):
        record.save(content, tmp_path / f"{name}.json")
    files = ["--report", str(tmp_path / "new.json"), "--compare", str(tmp_path / "old.json")]
    return command.main(files)


@pytest.mark.parametrize(("seconds", "status"), [(1.1, 0), (1.15, 0), (1.16, 1), (0.5, 0)])
def test_slower_products_fail(monkeypatch, tmp_path, capsys, seconds, status):
    new = _record()
    new["cases"][0]["results"]["ours"]["samples_s"] = [seconds, seconds, 9.0]
    assert _compared(monkeypatch, tmp_path, _record(), new) == status
    rows = capsys.readouterr().out.splitlines()
    row = next(row for row in rows if row.startswith("| square/a "))
    assert f"{seconds / 1.1:.3f}" in row and row.endswith("| SLOWER |") == bool(status)
    assert "| square/b | 1.000 |  |" in rows


def test_product_that_is_no_longer_measured_fails(monkeypatch, tmp_path, capsys):
    new = _record()
    new["cases"][1]["results"]["ours"] = {"status": "failed", "reason": "wrong"}
    assert _compared(monkeypatch, tmp_path, _record(), new) == 1
    assert "| square/b | failed | SLOWER |" in capsys.readouterr().out
    # What was not measured before cannot have become worse.
    assert [c.name for c in compare.changes(new, _record())] == ["square/a"]


def test_records_that_cannot_be_compared_are_an_error(monkeypatch, tmp_path, capsys):
    other = copy.deepcopy(_record())
    other["environment"]["device"] = "NVIDIA H200"
    assert _compared(monkeypatch, tmp_path, other, _record()) == 2
    assert "'NVIDIA H200'" in capsys.readouterr().err
    fewer = _record() | {"cases": [_case("c", 1.0)]}
    assert _compared(monkeypatch, tmp_path, fewer, _record()) == 2
    assert "no case of this one" in capsys.readouterr().err


def test_nothing_is_compared_until_a_record_is_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "_report", lambda content, folder: None)
    record.save(_record(), tmp_path / "new.json")
    files = ["--report", str(tmp_path / "new.json"), "--compare", str(tmp_path / "none.json")]
    assert command.main(files) == 0
    assert "nothing is compared" in capsys.readouterr().out
    (tmp_path / "bad.json").write_text("{}")
    assert command.main([*files[:3], str(tmp_path / "bad.json")]) == 2
