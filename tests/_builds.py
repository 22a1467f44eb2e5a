# SPDX-License-Identifier: Apache-2.0
"""Builds of the extension with other flags than those of a release, and programs that load them."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from _source import ROOT

SAMPLE = 64  # one kernel in so many is built: of dense, ragged, masked and k_grouped products


def build(
    folder: Path,
    compile_flags: Sequence[str],
    link_flags: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> None:
    """Builds extension and simulator, with a sample of its kernels, or what of them has changed.

    With targets of CMakeLists.txt, only those.
    """
    import cmake
    import ninja

    settings = {
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_CXX_FLAGS": " ".join(["-O1", *compile_flags]),
        "CMAKE_MAKE_PROGRAM": f"{ninja.BIN_DIR}/ninja",
        "FP8GEMM_SIM_SAMPLE": SAMPLE,
        "Python_EXECUTABLE": sys.executable,
    }
    for kind in ("EXE", "MODULE", "SHARED"):
        settings[f"CMAKE_{kind}_LINKER_FLAGS"] = " ".join(link_flags)
    command = [f"{cmake.CMAKE_BIN_DIR}/cmake", "-G", "Ninja", "-S", ROOT, "-B", folder]
    subprocess.run([*command, *(f"-D{name}={each}" for name, each in settings.items())], check=True)
    chosen = ["--target", *targets] if targets else []
    subprocess.run([command[0], "--build", folder, *chosen], check=True)


def load(folder: Path) -> None:
    """Loads the extension of a build, before the package loads that which is installed."""
    (path,) = folder.resolve().glob("_core*.so")
    spec = importlib.util.spec_from_file_location("jax_fp8gemm._core", path)
    sys.modules["jax_fp8gemm._core"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["jax_fp8gemm._core"])
