# SPDX-License-Identifier: Apache-2.0
"""Handlers, plans, simulator and kernels under AddressSanitizer and UBSan, by XLA: `make asan`.

ThreadSanitizer does not see the locks of jaxlib, which is not built with it, and takes what they
guard for races.
"""

import os
import subprocess
import sys
from pathlib import Path

import _builds
import _sanitizers
import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "sanitized"

pytestmark = pytest.mark.skipif(
    os.environ.get("FP8GEMM_SANITIZE") != "address", reason="needs a build of its own: make asan"
)


@pytest.fixture(scope="module")
def run():
    """Returns a function that runs the program on the build."""
    _builds.build(BUILD, _sanitizers.FLAGS)
    libraries = [
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    # What Python and jaxlib keep until the process ends is no finding.
    environment = os.environ | {
        "ASAN_OPTIONS": "detect_leaks=0",
        "JAX_PLATFORMS": "cpu",
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }

    def run_program(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, ROOT / "tests/_sanitized_program.py", BUILD]
        return subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True
        )

    return run_program


def test_products_and_quantizers_have_no_finding(run):
    result = run()
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == "9 products\n" and "ERROR" not in result.stderr


def test_a_planted_fault_is_seen(run):
    result = run("fault")
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr and "quantize" in result.stderr
