# SPDX-License-Identifier: Apache-2.0
"""Runs programs that compile for an H100 with XLA:GPU, ahead of time and without a GPU."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from _made_once import made_once

HERE = Path(__file__).parent


def missing() -> str | None:
    """Says why XLA:GPU cannot compile here; None if it can."""
    if importlib.util.find_spec("jax_fp8gemm._core") is None:
        return "needs the compiled extension jax_fp8gemm._core"
    versions = {}
    for package in ("jax-cuda13-plugin", "jax-cuda12-plugin"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    jaxlib = importlib.metadata.version("jaxlib")
    if not versions:
        return f"needs jax-cuda13-plugin=={jaxlib} and jax-cuda13-pjrt"
    if jaxlib not in versions.values():
        return f"jaxlib {jaxlib} does not match {versions}"
    return None


def marks() -> list[pytest.MarkDecorator]:
    """Returns the marks of a file of such tests."""
    reason = missing()
    return [pytest.mark.slow, pytest.mark.skipif(bool(reason), reason=f"XLA:GPU: {reason}")]


def run(folder: Path, program: str, *arguments: str) -> None:
    """Runs a program of this folder, with a kernel cache in `folder`."""
    command = [sys.executable, str(HERE / program), *arguments]
    environment = {
        **os.environ,
        "JAX_FP8GEMM_CACHE_DIR": str(folder / "cache"),
        # The package under test may be the source tree, which the child would not find.
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]


def compiled(factory: pytest.TempPathFactory, program: str) -> Path:
    """Returns the folder of what a program dumps, in a process of its own, once for all workers."""
    return made_once(factory, Path(program).stem, lambda folder: run(folder, program, str(folder)))
