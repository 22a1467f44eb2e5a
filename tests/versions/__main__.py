# SPDX-License-Identifier: Apache-2.0
"""Runs a part of the tests with the built wheels on other versions of Python and jax.

Usage: python -m tests.versions [--build] [--sample] [CELL...], where a cell is PYTHON-JAX, as in
3.12-newest; without any, all of `cells()`. Each has an environment of its own in build/versions,
and keeps its result there as long as wheel and tests stay the same. --sample is one cell, of
another Python than this one where there is one, built here, with the shortest of the tests.

A cell also runs a handler with state, bound as ours are: the GPU handlers keep their plans in such
a state, and no test without a GPU runs those; this one runs on the CPU.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "build" / "versions"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# What releases are built against (pyproject.toml).
OLDEST = "0.8.2"
RELEASES = (OLDEST, "0.9.0", "0.9.1", "0.9.2", "0.10.0", "0.10.2", "newest")
# Other Pythons than the first run these.
SAMPLE = (OLDEST, "0.9.2", "0.10.2", "newest")
# Those that give a handler bound with XLA's own State<T> no state.
WITHOUT_STATE = ("0.9.1", "0.9.2")
# Of every layer, and of every operation, something; minutes in all.
TESTS = ("block_scaled", "cli", "deep_gemm", "dot", "errors", "export", "extension", "xla")
# Of those a minute.
SHORT_TESTS = ("block_scaled", "extension", "export")
_PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet", "install")


def _run(*command: str | Path, **options: Any) -> str:
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **options)
    return run.stdout


def interpreters() -> dict[str, str]:
    """Returns the interpreters of this machine by version: of the path, and of pyenv."""
    found = {}
    for version in PYTHONS:
        pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        for path in (shutil.which(f"python{version}"), *map(str, pyenv)):
            program = "import venv, sys; print('%d.%d' % sys.version_info[:2])"
            command = [path or "false", "-c", program]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.stdout.strip() == version:
                found[version] = str(path)
                break
    return found


def cells(pythons: list[str]) -> list[str]:
    """Returns what is run: every release on the first Python, and a sample on the others."""
    found = []
    for python in pythons:
        for release in RELEASES if python == pythons[0] else SAMPLE:
            # jax 0.11 and later need Python 3.12: the newest for 3.11 is 0.10.2.
            if (python, release) != ("3.11", "newest"):
                found.append(f"{python}-{release}")
    return found


def sample(pythons: list[str]) -> str:
    """Returns the cell of --sample: the newest other Python, and a jax that loses states."""
    here = "{}.{}".format(*sys.version_info)
    others = [version for version in pythons if version != here]
    return f"{(others or pythons)[-1]}-{WITHOUT_STATE[-1]}"


def environment(cell: str, interpreter: str) -> Path:
    """Returns the interpreter of an environment with the jax of a cell and what tests need."""
    folder, release = FOLDER / cell, cell.partition("-")[2]
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        _run(interpreter, "-m", "venv", "--clear", folder)
        exact = "" if release == "newest" else f"=={release}"
        tools = ("pytest>=8", "pytest-xdist>=3.5", "flatbuffers>=24", "safetensors>=0.6.1")
        compiler = ("hypothesis>=6.100", "nvidia-cuda-nvrtc>=13.0", "nvidia-cuda-nvdisasm>=13.2")
        _run(python, *_PIP, f"jax{exact}", f"jaxlib{exact}", *tools, *compiler)
        (folder / "installed").touch()
    return python


def install(python: Path, build: bool) -> str:
    """Installs the package; returns what identifies it."""
    state = _run(ROOT / ".ci" / "source-state").strip()
    again = ("--force-reinstall", "--no-deps")
    if build:
        without_kernels = "-Ccmake.define.FP8GEMM_SIM_KERNELS=OFF"
        _run(python, *_PIP, *again, without_kernels, ROOT)
        return state
    known = ROOT / "dist" / "source-state"
    if not known.exists() or known.read_text().strip() != state:
        raise SystemExit(
            "dist/ has no wheels of these sources: make wheel PYTHONS='python3.11 python3.12'"
        )
    _run(python, *_PIP, *again, "--no-index", "--find-links", ROOT / "dist", "jax-fp8gemm")
    return state


def build_handler() -> Path:
    """Returns the library of state_handler.cc, built as releases are: with the oldest headers."""
    headers, library = FOLDER / "headers", FOLDER / "libstate_handler.so"
    if not headers.exists():
        _run(sys.executable, *_PIP, "--no-deps", "--target", headers, f"jaxlib=={OLDEST}")
    compiler = ("c++", "-std=c++20", "-w", "-shared", "-fPIC", "-o", library)
    includes = (f"-I{headers / 'jaxlib' / 'include'}", f"-I{ROOT / 'csrc'}")
    _run(*compiler, *includes, HERE / "state_handler.cc")
    return library


def check_state(python: Path, library: Path, cell: str) -> dict[str, str]:
    """Returns the release of jaxlib, and how handlers with a state fared."""
    found = json.loads(_run(python, HERE / "state_program.py", library))
    is_expected = (found["Plain"] != 42) == cell.endswith(WITHOUT_STATE)
    fared = "passed" if found["Ours"] == 42 and is_expected else f"FAILED: {found}"
    return {"jaxlib": found["jaxlib"], "state": fared}


def run_tests(python: Path, names: tuple[str, ...]) -> str:
    """Returns what pytest says of the tests in a word."""
    files = [ROOT / "tests" / f"test_{name}.py" for name in names]
    # From elsewhere: the package is the installed one, not the sources here.
    command = [python, "-P", "-m", "pytest", "-q", "-n", "2", "-m", "not slow", *files]
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONSAFEPATH": "1"}
    run = subprocess.run(command, cwd=FOLDER, env=variables, capture_output=True, text=True)
    (python.parents[1] / "pytest.log").write_text(run.stdout + run.stderr)
    summary = re.search(r"(\d+ (?:passed|failed)[^\n]*?) in ", run.stdout)
    word = re.sub(r", \d+ (deselected|warnings?)", "", summary[1] if summary else "no summary")
    return word if run.returncode == 0 else f"FAILED: {word}"


def _digest(*state: str) -> str:
    tests = sorted(p for p in (ROOT / "tests").rglob("*.py") if "__pycache__" not in p.parts)
    text = b"".join(path.read_bytes() for path in tests)
    return hashlib.sha256(" ".join(state).encode() + text).hexdigest()


def run_cell(cell: str, interpreter: str, library: Path, options: argparse.Namespace) -> dict:
    """Returns the results of a cell: those kept of the same sources, or new ones."""
    python = environment(cell, interpreter)
    result = check_state(python, library, cell)
    names = SHORT_TESTS if options.sample else TESTS
    digest = _digest(install(python, options.build), *names)
    kept = FOLDER / cell / "result.json"
    if kept.exists() and (old := json.loads(kept.read_text()))["digest"] == digest:
        return {**old, **result}
    result |= {"tests": run_tests(python, names), "digest": digest}
    if "FAILED" not in result["tests"] + result["state"]:
        kept.write_text(json.dumps(result))
    return result


def main(arguments: list[str]) -> int:
    """Prints a row for each cell; 1 if one failed or could not be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    parser.add_argument("--build", action="store_true", help="without the simulator's kernels")
    parser.add_argument("--sample", action="store_true", help="one cell in a minute or two")
    parser.add_argument("cells", nargs="*", metavar="PYTHON-JAX")
    options = parser.parse_args(arguments)
    pythons = interpreters()
    wanted = options.cells or cells(list(pythons))
    if options.sample:
        wanted, options.build = [sample(list(pythons))], True
    library = build_handler()
    failed = []
    print("| Python | jax | jaxlib | handler with a state | tests |\n|---|---|---|---|---|")
    for cell in wanted:
        version, _, release = cell.partition("-")
        if version not in pythons:
            result = {"jaxlib": "-", "state": "-", "tests": "FAILED: no such Python here"}
        else:
            result = run_cell(cell, pythons[version], library, options)
        row = (version, release, result["jaxlib"], result["state"], result["tests"])
        print(f"| {' | '.join(row)} |", flush=True)
        failed += [cell] if "FAILED" in "".join(row) else []
    if failed:
        print(f"not as expected: {', '.join(failed)}; see build/versions/*/pytest.log")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
