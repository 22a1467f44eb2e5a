# SPDX-License-Identifier: Apache-2.0
"""The hooks of .pre-commit-config.yaml are the commands of `make lint`, in the same versions.

`make tidy` sees faults of the kinds that matter here.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
from _source import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
HOOKS = (ROOT / ".pre-commit-config.yaml").read_text()
_PIN = re.compile(r"\b[\w-]+==[\w.]+")

# Check of clang-tidy: what it must find.
FAULTS = {
    "bugprone-implicit-widening-of-multiplication-result": (
        "#include <cstdint>\nint64_t f(uint32_t m, uint32_t n) { return m * n; }"
    ),
    "bugprone-use-after-move": (
        "#include <string>\n#include <utility>\n#include <vector>\n"
        "size_t f(std::vector<std::string>& all, std::string name) {\n"
        "  all.push_back(std::move(name));\n  return name.size();\n}"
    ),
    "clang-analyzer-core.NullDereference": "int f(int* p) { return p == nullptr ? *p : 0; }",
    "misc-include-cleaner": "#include <vector>\nint f() { return 0; }",
    "performance-unnecessary-value-param": (
        "#include <string>\nsize_t f(std::string text) { return text.size(); }"
    ),
}


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


@pytest.mark.parametrize("check", FAULTS)
def test_clang_tidy_finds(check, tmp_path):
    program = shutil.which("clang-tidy", path=os.path.dirname(sys.executable))
    if program is None:
        pytest.skip("needs clang-tidy: make tidy")
    source = tmp_path / "fault.cc"
    source.write_text(FAULTS[check] + "\n")
    command = [program, "--quiet", f"--config-file={ROOT / '.clang-tidy'}", source, "--"]
    run = subprocess.run([*command, "-std=c++20"], capture_output=True, text=True)
    assert run.returncode != 0 and f"[{check},-warnings-as-errors]" in run.stdout
