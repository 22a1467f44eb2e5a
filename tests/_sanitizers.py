# SPDX-License-Identifier: Apache-2.0
"""With FP8GEMM_SANITIZE=address or thread, C++ is built with sanitizers: `make asan`, `make tsan`.

C++ tests are; and an extension, which programs in Python load in the place of the installed one.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import _builds
from _source import ROOT

_FLAGS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
_EXTENSION = "FP8GEMM_SANITIZED_EXTENSION"  # folder of the build that a program loads from
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
BUILD = ROOT / "build" / f"sanitized-{KIND}"


def build_extension(*targets: str) -> None:
    """Builds what CMakeLists.txt names, by default all, in BUILD."""
    _builds.build(BUILD, FLAGS, targets=targets)


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
    return {**path, **_OPTIONS[KIND], "LD_PRELOAD": " ".join(libraries), _EXTENSION: str(BUILD)}


def use_extension() -> None:
    """Has the package take the extension of `environment`; before its first import."""
    if folder := os.environ.get(_EXTENSION):
        _builds.load(Path(folder))
