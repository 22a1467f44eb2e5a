# SPDX-License-Identifier: Apache-2.0
"""The scripts that build a wheel, check it, and install it where there is no network."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CI = Path(__file__).parent.parent / ".ci"

# An interpreter that has the package, and writes down what it is told.
_PYTHON = """#!/bin/sh
echo "$@" >> {log}
"""


@pytest.fixture
def checkout(tmp_path):
    """A tiny tree with the scripts, and a wheel of what is in it."""
    root = tmp_path / "checkout"
    for folder in (".ci", "csrc", "jax_fp8gemm", "dist"):
        (root / folder).mkdir(parents=True)
    for name in ("offline-install", "source-state"):
        shutil.copy(CI / name, root / ".ci")
    for name in ("CMakeLists.txt", "pyproject.toml", "csrc/a.cc", "jax_fp8gemm/__init__.py"):
        (root / name).write_text(name)
    (root / "dist" / "a.whl").touch()
    state = subprocess.run([root / ".ci/source-state"], check=True, stdout=subprocess.PIPE).stdout
    (root / "dist" / "source-state").write_bytes(state)
    python = root / "python"
    python.write_text(_PYTHON.format(log=root / "log"))
    python.chmod(0o755)
    return root


def installed(root):
    """Returns what pip was told to install, and what the script said."""
    log = root / "log"
    log.unlink(missing_ok=True)
    command = [root / ".ci/offline-install", root / "python"]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = log.read_text().splitlines()
    return [line.split()[-1] for line in lines if " install " in line], run.stderr


def test_a_wheel_of_these_sources_is_installed_once(checkout):
    assert installed(checkout) == (["jax-fp8gemm"], "")
    assert installed(checkout) == ([], "")


@pytest.mark.parametrize("name", ["csrc/a.cc", "jax_fp8gemm/__init__.py", "pyproject.toml"])
def test_a_wheel_of_other_sources_is_not_installed(checkout, name):
    assert installed(checkout)[0] == ["jax-fp8gemm"]
    (checkout / name).write_text("changed")
    packages, message = installed(checkout)
    assert packages == ["."]
    assert "of other sources" in message


def test_without_a_wheel_the_sources_are_installed(checkout):
    shutil.rmtree(checkout / "dist")
    assert installed(checkout) == (["."], "")


def check_wheel(path, leave_out="", add=()):
    """Runs the check on a wheel of empty files."""
    root = CI.parent
    names = [str(p.relative_to(root)) for p in (root / "jax_fp8gemm").rglob("*.py")]
    names += [f"jax_fp8gemm/{name}" for name in ("_core.abi3.so", "_core.pyi", "py.typed")]
    names += [f"jax_fp8gemm/libjax_fp8gemm_{name}.so" for name in ("sim", "sim_kernels")]
    names += ["jax_fp8gemm/tuned/README.md"]
    licenses = ("LICENSE", "THIRD_PARTY_NOTICES.txt")
    names += [f"jax_fp8gemm-1.dist-info/licenses/{name}" for name in licenses]
    names += add
    with zipfile.ZipFile(path, "w") as wheel:
        for name in names:
            if name != leave_out:
                wheel.writestr(name, "")
    command = [sys.executable, CI / "check_wheel.py", path]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_whole_wheel_passes_its_check(tmp_path):
    assert check_wheel(tmp_path / "a.whl").returncode == 0


@pytest.mark.parametrize(
    "name",
    ["jax_fp8gemm/_src/ops/gemm.py", "jax_fp8gemm/_core.abi3.so", "jax_fp8gemm/tuned/README.md"],
)
def test_a_wheel_that_lacks_a_file_fails_its_check(tmp_path, name):
    run = check_wheel(tmp_path / "a.whl", leave_out=name)
    assert run.returncode == 1 and "lacks jax_fp8gemm/" in run.stderr


def test_a_wheel_with_a_strange_file_fails_its_check(tmp_path):
    run = check_wheel(tmp_path / "a.whl", add=["csrc/a.cc"])
    assert run.returncode == 1 and "should not have csrc/a.cc" in run.stderr
