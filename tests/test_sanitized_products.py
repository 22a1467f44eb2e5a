# SPDX-License-Identifier: Apache-2.0
"""Handlers, plans, simulator and kernels under sanitizers, by XLA: `make asan` and `make tsan`.

ThreadSanitizer does not see the locks of jaxlib, which is not built with it: it looks at what our
code does. That it sees handlers in several threads, test_cuda_driver.py shows by a planted fault.
"""

import os
import subprocess
import sys

import _sanitizers
import pytest

pytestmark = pytest.mark.skipif(
    not _sanitizers.KIND, reason="needs a build of its own: make asan, make tsan"
)


@pytest.fixture(scope="module")
def run():
    """Returns a function that runs the program on the build."""
    _sanitizers.build_extension()
    environment = os.environ | _sanitizers.environment() | {"JAX_PLATFORMS": "cpu"}

    def run_program(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, _sanitizers.ROOT / "tests/_sanitized_program.py", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run_program


def test_products_and_quantizers_have_no_finding(run):
    result = run()
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == "9 products\n"
    assert "ERROR" not in result.stderr and "WARNING: ThreadSanitizer" not in result.stderr


@pytest.mark.skipif(_sanitizers.KIND != "address", reason="a fault of memory")
def test_a_planted_fault_is_seen(run):
    result = run("fault")
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr and "quantize" in result.stderr
