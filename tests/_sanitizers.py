# SPDX-License-Identifier: Apache-2.0
"""With FP8GEMM_SANITIZE=address or thread, C++ is built with sanitizers: `make asan`, `make tsan`.

C++ tests are; and an extension, which programs in Python load in the place of the installed one.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FLAGS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
_EXTENSION = "FP8GEMM_SANITIZED_EXTENSION"  # path of what a program loads
_RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}
# What Python and jaxlib keep until the process ends is no finding of ours, nor is what they do in
# several threads: they are not instrumented, nor are their locks.
_OPTIONS = {
    "address": {"ASAN_OPTIONS": "detect_leaks=0"},
    "thread": {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1"},
}


def flags(kind: str) -> list[str]:
    """Returns what g++ is to be told, to compile and to link; nothing for ""."""
    return [*_FLAGS[kind], "-g1", "-fno-omit-frame-pointer"] if kind else []


KIND = os.environ.get("FP8GEMM_SANITIZE", "")
FLAGS = flags(KIND)
SAMPLE = 64  # one kernel in so many is built: of dense, ragged, masked and k_grouped products
BUILD = ROOT / "build" / f"sanitized-{KIND}"


def build_extension(*targets: str) -> None:
    """Builds what CMakeLists.txt names, by default all, in BUILD."""
    import cmake
    import ninja

    settings = {
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_CXX_FLAGS": " ".join(["-O1", *FLAGS]),
        "CMAKE_MAKE_PROGRAM": f"{ninja.BIN_DIR}/ninja",
        "FP8GEMM_SIM_SAMPLE": SAMPLE,
        "Python_EXECUTABLE": sys.executable,
    }
    command = f"{cmake.CMAKE_BIN_DIR}/cmake"
    options = [f"-D{name}={value}" for name, value in settings.items()]
    subprocess.run([command, "-G", "Ninja", "-S", ROOT, "-B", BUILD, *options], check=True)
    chosen = ["--target", *targets] if targets else []
    subprocess.run([command, "--build", BUILD, *chosen], check=True)


def environment() -> Mapping[str, str]:
    """Returns the variables with which programs in Python find what tests import.

    They then also load what `build_extension` has built, if something has been.
    """
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    if not KIND:
        return path
    libraries = [
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        for name in (_RUNTIMES[KIND], "libstdc++.so.6")
    ]
    (extension,) = BUILD.glob("_core*.so")
    return {**path, **_OPTIONS[KIND], "LD_PRELOAD": " ".join(libraries), _EXTENSION: str(extension)}


def use_extension() -> None:
    """Has the package take the extension of `environment`; before its first import."""
    if path := os.environ.get(_EXTENSION):
        spec = importlib.util.spec_from_file_location("jax_fp8gemm._core", path)
        sys.modules["jax_fp8gemm._core"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["jax_fp8gemm._core"])
