# SPDX-License-Identifier: Apache-2.0
"""The hooks of .pre-commit-config.yaml are the commands of `make lint`, in the same versions."""

import re

from _source import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
HOOKS = (ROOT / ".pre-commit-config.yaml").read_text()
_PIN = re.compile(r"\b[\w-]+==[\w.]+")


def test_versions_are_those_of_the_makefile():
    (linters,) = re.findall(r"^LINTERS := (.*)$", MAKEFILE, re.MULTILINE)
    assert all(map(_PIN.fullmatch, linters.split()))
    assert set(_PIN.findall(HOOKS)) == set(linters.split())


def test_other_requirements_are_those_of_the_makefile():
    (others,) = re.findall(r"install \$\(LINTERS\) (.*)$", MAKEFILE, re.MULTILINE)
    (hooks,) = re.findall(r"\[basedpyright==[\w.]+, (.*)\]", HOOKS)
    assert hooks.split(", ") == others.replace("'", "").split()


def test_commands_are_those_of_make_lint():
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    # A hook runs in an environment of its own, whose Python is the first.
    commands = recipe.replace(" --pythonpath $(BIN)/python", "").replace("$(BIN)/", "")
    commands = commands.replace(" $(CPP_SOURCES)", "")  # a hook is given the files
    entries = re.findall(r"^ +entry: (?:env )?(.*)$", HOOKS, re.MULTILINE)
    assert entries == commands.replace("\t", "").splitlines()
