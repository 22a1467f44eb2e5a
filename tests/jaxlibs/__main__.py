# SPDX-License-Identifier: Apache-2.0
"""Runs a handler with state, bound as ours are, on other releases of jaxlib.

Usage: python -m tests.jaxlibs [VERSION...], without arguments for all of VERSIONS. The GPU handlers
keep their plans in such a state, and no test without a GPU runs those: this one runs on the CPU.
Each release gets an environment of its own in build/jaxlibs.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "build" / "jaxlibs"
# What releases are built against (pyproject.toml).
OLDEST = "0.8.2"
VERSIONS = (OLDEST, "0.9.0", "0.9.1", "0.9.2", "0.10.0", "0.10.2", "newest")
# Those that give a handler bound with XLA's own State<T> no state.
WITHOUT_STATE = ("0.9.1", "0.9.2")
# jax 0.11 and later need Python 3.12: NEWER_PYTHON names one, else these are tried.
_NEWER_PYTHONS = (os.environ.get("NEWER_PYTHON", ""), "python3.14", "python3.13", "python3.12")


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _python(version: str) -> str | None:
    """Returns the interpreter for a release, or None where the machine has none."""
    if version != "newest" or sys.version_info >= (3, 12):
        return sys.executable
    for name in _NEWER_PYTHONS:
        path = shutil.which(name)
        if (
            path
            and subprocess.run([path, "-c", "import venv"], capture_output=True).returncode == 0
        ):
            return path
    return None


def environment(version: str, python: str) -> Path:
    """Returns the interpreter of an environment with a release of jax."""
    folder = FOLDER / version
    if not (folder / "installed").exists():
        _run(python, "-m", "venv", "--clear", folder)
        release = "" if version == "newest" else f"=={version}"
        pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install")
        _run(*pip, "-q", "--upgrade", f"jax{release}", f"jaxlib{release}")
        (folder / "installed").touch()
    return folder / "bin" / "python"


def build_handler(python: Path) -> Path:
    """Returns the library of state_handler.cc, built against the headers of an environment."""
    include = _run(python, "-c", "import jax; print(jax.ffi.include_dir())").strip()
    library = FOLDER / "libstate_handler.so"
    compiler = ("c++", "-std=c++20", "-w", "-shared", "-fPIC", "-o", library)
    _run(*compiler, f"-I{include}", f"-I{ROOT / 'csrc'}", HERE / "state_handler.cc")
    return library


def main(*versions: str) -> int:
    """Prints a line for each release; 1 if a handler of ours had no state."""
    library = build_handler(environment(OLDEST, sys.executable))
    failed = []
    for version in versions or VERSIONS:
        python = _python(version)
        if python is None:
            print(f"jaxlib {version:8} not run: it needs Python 3.12 or later")
            continue
        found = json.loads(_run(environment(version, python), HERE / "state_program.py", library))
        plain = "a state" if found["Plain"] == 42 else "no state"
        print(f"jaxlib {found['jaxlib']:8} ours: {found['Ours']}, bound with ffi::State: {plain}")
        is_expected = (found["Plain"] != 42) == (version in WITHOUT_STATE)
        if found["Ours"] != 42 or not is_expected:
            failed.append(version)
    if failed:
        print(f"not as expected: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
