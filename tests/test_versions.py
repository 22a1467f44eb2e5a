# SPDX-License-Identifier: Apache-2.0
"""`make test-matrix`: which cells it has, and that it fails where one cannot run or goes wrong."""

import json
import sys
from pathlib import Path

import pytest
import versions.__main__ as versions

PASSED = {"jaxlib": "0.9.2", "state": "passed"}


@pytest.fixture
def matrix(monkeypatch, tmp_path):
    """The program without environments: each cell has `PASSED`, and tests with what they say."""
    said = {"tests": "5 passed", "runs": 0, "state": "7"}

    def run_tests(python, names):
        said["names"] = names
        said["runs"] += 1
        return said["tests"]

    monkeypatch.setattr(versions, "FOLDER", tmp_path)
    monkeypatch.setattr(versions, "interpreters", lambda: {"3.11": "a", "3.12": "b"})
    monkeypatch.setattr(versions, "environment", lambda cell, python: Path("python"))
    monkeypatch.setattr(versions, "build_handler", lambda: Path("library"))
    monkeypatch.setattr(versions, "check_state", lambda *_: dict(PASSED))
    monkeypatch.setattr(versions, "install", lambda python, build: said["state"])
    monkeypatch.setattr(versions, "run_tests", run_tests)
    for cell in versions.cells(["3.11", "3.12"]):
        (tmp_path / cell).mkdir()
    return said


def test_cells_are_every_release_once_and_a_sample():
    cells = versions.cells(["3.11", "3.12"])
    first = [f"3.11-{release}" for release in versions.RELEASES if release != "newest"]
    assert cells == first + [f"3.12-{release}" for release in versions.SAMPLE]
    assert f"3.12-{versions.OLDEST}" in cells and "3.12-newest" in cells
    assert set(versions.WITHOUT_STATE) <= set(versions.RELEASES)


def test_sample_is_of_another_python_where_there_is_one(matrix, capsys):
    here = "{}.{}".format(*sys.version_info)
    assert versions.sample(["3.1", here, "3.99"]) == "3.99-0.9.2"
    assert versions.sample(["3.1", here]) == "3.1-0.9.2"
    assert versions.sample([here]) == f"{here}-0.9.2"
    cell = versions.sample(["3.11", "3.12"])
    (versions.FOLDER / cell).mkdir(exist_ok=True)
    assert versions.main(["--sample"]) == 0
    assert matrix["names"] == versions.SHORT_TESTS and set(matrix["names"]) < set(versions.TESTS)
    # What the short tests have said is not taken for all of them.
    assert versions.main([cell]) == 0 and matrix["names"] == versions.TESTS
    assert capsys.readouterr().out.count(f"| {cell.partition('-')[0]} | 0.9.2 |") == 2


def test_results_are_kept_as_long_as_the_sources_are_the_same(matrix, capsys):
    assert versions.main(["3.11-0.9.2", "3.12-newest"]) == 0
    assert "| 3.12 | newest | 0.9.2 | passed | 5 passed |" in capsys.readouterr().out
    assert versions.main(["3.12-newest"]) == 0 and matrix["runs"] == 2
    matrix["state"] = "8"
    assert versions.main(["3.12-newest"]) == 0 and matrix["runs"] == 3


def test_failures_are_told_and_not_kept(matrix, capsys):
    matrix["tests"] = "FAILED: 1 failed, 4 passed"
    assert versions.main(["3.12-newest"]) == 1
    assert "not as expected: 3.12-newest" in capsys.readouterr().out
    matrix["tests"] = "5 passed"
    assert versions.main(["3.12-newest"]) == 0 and matrix["runs"] == 2


def test_python_that_is_not_here_fails(matrix, capsys):
    assert versions.main(["3.14-newest"]) == 1
    assert "| 3.14 | newest | - | - | FAILED: no such Python here |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("release", "ours", "plain", "word"),
    [
        ("0.10.2", 42, 42, "passed"),
        ("0.9.1", 42, -1, "passed"),
        ("0.10.2", 42, -1, "FAILED"),  # a release with the fault of 0.9.1 is news
        ("0.9.1", 42, 42, "FAILED"),
        ("0.10.2", -1, 42, "FAILED"),
    ],
)
def test_state_is_judged_by_release(monkeypatch, release, ours, plain, word):
    found = json.dumps({"jaxlib": release, "Ours": ours, "Plain": plain})
    monkeypatch.setattr(versions, "_run", lambda *_: found)
    result = versions.check_state(Path("python"), Path("library"), f"3.12-{release}")
    assert result["state"].startswith(word)


def test_wheels_of_other_sources_are_not_tested(monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "_run", lambda *_: "1 2\n")
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="make wheel"):
        versions.install(Path("python"), build=False)
