# SPDX-License-Identifier: Apache-2.0
"""Where the witnesses' packages are installed, and host programs that are compiled with them."""

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import _sanitizers
import pytest
from _made_once import made_once
from _source import ROOT

from jax_fp8gemm._src.native.nvidia import nvidia_folders

TRUTH = Path(__file__).parent
_CPP = ROOT / "tests" / "cpp"
_CSRC = ROOT / "csrc"
# Folder of cuda.h inside the `nvidia` namespace package, by major version of CUDA, and its wheel.
CUDA_HEADERS = {
    13: ("cu13/include", "nvidia-cuda-runtime"),
    12: ("cuda_runtime/include", "nvidia-cuda-runtime-cu12"),
}
_FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", *_sanitizers.FLAGS]


def needs(package: str, *, extra: str = "truth"):
    """Skips the test for want of a package."""
    pytest.skip(f"needs the package {package}, of the extra '{extra}' in pyproject.toml")


def compiler() -> str:
    """Returns the C++ compiler."""
    return shutil.which("g++") or pytest.skip("needs g++")


def cuda_headers(major: int) -> Path:
    """Returns the folder of NVIDIA's cuda.h, or skips the test."""
    folder, package = CUDA_HEADERS[major]
    for root in nvidia_folders():
        if (root / folder / "cuda.h").exists():
            return root / folder
    return needs(package)


def cute_headers() -> list[Path]:
    """Returns the folders that CuTe is included from, or skips the test."""
    spec = importlib.util.find_spec("cutlass_library")
    if spec is None:
        return needs("nvidia-cutlass")
    cute = Path(spec.origin).parent / "source" / "include"
    if not (cute / "cute" / "tensor.hpp").exists():
        return needs("nvidia-cutlass with include/cute")
    found = [cute]
    for part, package in [
        ("cuda.h", "nvidia-cuda-runtime"),
        ("crt/host_defines.h", "nvidia-cuda-crt"),
        ("cccl/cuda/std/utility", "nvidia-cuda-cccl"),
    ]:
        roots = [root / "cu13/include" for root in nvidia_folders()]
        folder = next((root for root in roots if (root / part).exists()), None)
        if folder is None:
            return needs(package)
        found.append(folder / "cccl" if part.startswith("cccl") else folder)
    return list(dict.fromkeys(found))


def run(*command: object) -> subprocess.CompletedProcess:
    """Runs a program and returns what it printed."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600
    )


def compile_program(
    factory: pytest.TempPathFactory,
    name: str,
    sources: Sequence[str],
    *,
    headers: Sequence[Path] = (),
    flags: Sequence[str | Path] = (),
) -> Path:
    """Returns the program `name`, compiled once in a run of the tests.

    Args:
        factory: pytest's.
        name: Of the program.
        sources: Without `.cc`: of this folder, or of csrc with the folders in it.
        headers: Folders of the witness's headers.
        flags: For compiler and linker.
    """
    includes = [f"-I{path}" for path in (_CSRC, _CPP, TRUTH)]
    includes += [part for folder in headers for part in ("-isystem", folder)]
    paths = [(_CSRC if "/" in source else TRUTH) / f"{source}.cc" for source in sources]

    def make(folder: Path) -> None:
        command = [compiler(), *_FLAGS, *includes, *paths, *flags, "-ldl", "-o", folder / name]
        made = run(*command)
        assert made.returncode == 0, made.stderr

    return made_once(factory, name, make) / name
