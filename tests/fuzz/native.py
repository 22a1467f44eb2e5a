# SPDX-License-Identifier: Apache-2.0
"""A build of the extension that says which of its code runs, and libFuzzer's counters for it."""

import ctypes
import importlib
import subprocess
from pathlib import Path

import _builds

BUILD = _builds.ROOT / "build" / "coverage"
_COUNTERS = BUILD / "libcoverage.so"


def build() -> None:
    """Builds it, or what of it has changed."""
    source = Path(__file__).parent / "coverage.cc"
    BUILD.mkdir(parents=True, exist_ok=True)
    if not _COUNTERS.exists() or _COUNTERS.stat().st_mtime < source.stat().st_mtime:
        flags = ["-std=c++20", "-O2", "-shared", "-fPIC"]
        subprocess.run(["g++", *flags, source, "-o", _COUNTERS], check=True)
    link = f"-Wl,--no-as-needed,{_COUNTERS}"
    _builds.build(BUILD, ["-fsanitize-coverage=trace-pc"], [link])


def load() -> None:
    """Loads it in the place of the installed extension, and gives libFuzzer its counters."""
    _builds.load(BUILD)
    counters = ctypes.CDLL(str(_COUNTERS))
    fuzzer = ctypes.CDLL(importlib.import_module("atheris.core_with_libfuzzer").__file__)
    for array, register in (("Counters", "8bit_counters_init"), ("Places", "pcs_init")):
        ends = [getattr(counters, array + end) for end in ("Begin", "End")]
        for end in ends:
            end.restype = ctypes.c_void_p
        getattr(fuzzer, f"__sanitizer_cov_{register}")(*(ctypes.c_void_p(end()) for end in ends))
