# SPDX-License-Identifier: Apache-2.0
"""Builds csrc/driver and most of csrc/jit with g++ into their C++ tests; needs no CUDA."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _sanitizers
import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
CPP = ROOT / "tests" / "cpp"
FLAGS = ["-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", "-fPIC", "-pthread"]
FLAGS += ["-I", str(CSRC), "-I", str(CPP), *_sanitizers.FLAGS]

_DRIVER = ["driver/driver", "driver/fork_mutex", "driver/interrupts"]
_CACHE = [
    "driver/fork_mutex",
    "driver/interrupts",
    "jit/build_lock",
    "jit/disk_store",
    "jit/kernel_cache",
    "jit/trusted_directory",
]
_KERNEL = [
    "driver/driver",
    "driver/device_limits",
    "jit/build_identity",
    "jit/headers",
    "jit/kernel",
    "jit/nvrtc",
    *_CACHE,
]
# Program -> the sources of csrc it is linked with.
CACHE_PROGRAMS = {
    "runtime_cache_test": _CACHE,
    "runtime_storm_test": _CACHE,
    "runtime_trust_test": _CACHE,
}
PROGRAMS = {
    "interrupts_test": ["driver/fork_mutex", "driver/interrupts"],
    "runtime_nvrtc_test": [*_DRIVER, "jit/build_identity", "jit/nvrtc"],
    "headers_test": ["jit/headers"],
    "runtime_driver_test": ["driver/tensor_map", *_KERNEL],
    "fork_test": _KERNEL,
}


def compiler() -> str:
    """Returns g++, or skips the test."""
    path = shutil.which("g++")
    if path is None:
        pytest.skip("needs g++")
    return path


def run(*command: object, **options) -> str:
    """Returns what a program printed; it must have succeeded."""
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=120, **options
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout


def build(programs: dict[str, list[str]], folder: Path) -> dict[str, Path]:
    """Builds test programs in a folder; returns them by name."""
    gxx = compiler()
    sources = [CPP / f"{program}.cc" for program in programs]
    sources += [CSRC / f"{part}.cc" for part in {p for ps in programs.values() for p in ps}]

    def compile_one(source: Path) -> None:
        run(gxx, *FLAGS, "-c", source, "-o", folder / f"{source.stem}.o")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, sources))
    for program, parts in programs.items():
        objects = [folder / f"{Path(part).name}.o" for part in [program, *parts]]
        run(gxx, "-pthread", *_sanitizers.FLAGS, *objects, "-ldl", "-o", folder / program)
    return {program: folder / program for program in programs}
