# SPDX-License-Identifier: Apache-2.0
"""GitHub's workflows: they parse, and each step is a target of the Makefile or a pinned action."""

import re

import pytest
import yaml
from _source import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
RULES = re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
TARGETS = set(" ".join(RULES).split())
# Actions that steps may use, each at one commit, which nobody can move as a tag can be moved.
ACTION = re.compile(r"(?:actions/[a-z-]+|pypa/gh-action-pypi-publish)@[0-9a-f]{40}")
USES = re.compile(r"uses: (\S+)(?:  # (v\d+\.\d+\.\d+))?$", re.MULTILINE)
MAKE = re.compile(r"make((?: [a-z-]+)+)((?: [A-Z_]+=(?:\"[^\"]*\"|\S+))*)")
SYSTEM_PACKAGES = re.compile(r"sudo apt-get install --yes( [a-z0-9+-]+)+")


def _steps(path) -> list[dict]:
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def _targets(command: str) -> list[str]:
    """Returns the targets that a step makes, none where it only installs packages."""
    if SYSTEM_PACKAGES.fullmatch(command):
        return []
    match = MAKE.fullmatch(command)
    assert match, f"{command!r} is no make"
    return match[1].split()


def test_there_are_workflows():
    assert {path.stem for path in WORKFLOWS} >= {"ci", "gpu", "nightly", "wheels"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_steps_are_make_targets_or_pinned_actions(path):
    steps = _steps(path)
    assert steps
    for step in steps:
        assert ("run" in step) != ("uses" in step), step
        if "uses" in step:
            assert ACTION.fullmatch(step["uses"]), step["uses"]
        else:
            assert set(_targets(step["run"])) <= TARGETS, step["run"]


def test_each_action_has_one_commit_and_names_its_version():
    uses = {use for path in WORKFLOWS for use in USES.findall(path.read_text())}
    assert uses and all(version for _, version in uses), uses
    assert len({action.partition("@")[0] for action, _ in uses}) == len(uses)


@pytest.mark.parametrize("command", ["make lint && rm x", "pytest", "make", "make lint; true"])
def test_other_commands_are_found(command):
    with pytest.raises(AssertionError, match="is no make"):
        _targets(command)


def test_every_workflow_may_only_read():
    """A job that needs more, as publishing does, says so itself."""
    for path in WORKFLOWS:
        assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}, path


def test_benchmark_is_compared_with_a_record_that_runs_do_not_replace():
    step = next(
        step["run"]
        for step in _steps(ROOT / ".github/workflows/gpu.yml")
        if "run" in step and "--compare" in step["run"]
    )
    output, old = re.search(r'--output (\S+) --compare ([^\s"]+)', step).groups()
    assert output.startswith("build/") and old.startswith("benchmarks/")


def test_tests_run_on_every_python_that_is_claimed():
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    pythons = matrix["jobs"]["tests"]["strategy"]["matrix"]["python"]
    classifiers = re.findall(r"Python :: (3\.\d+)\"", (ROOT / "pyproject.toml").read_text())
    assert pythons == classifiers
