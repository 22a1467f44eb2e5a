# SPDX-License-Identifier: Apache-2.0
"""A sample of `make asan` and `make tsan`, and that they see faults."""

import os
import subprocess
import sys
from pathlib import Path

import _sanitizers
import pytest

HERE = Path(__file__).parent
FAULTS = {
    "address": ("int main(int n, char**) { return (new int[n])[n]; }", "heap-buffer-overflow"),
    "undefined": ("int main(int n, char**) { return n + 2147483647; }", "signed integer overflow"),
    "thread": (
        "#include <thread>\nvolatile int x;\n"
        "void count() { for (int i = 0; i < 1000000; ++i) x = x + 1; }\n"
        "int main() { std::thread t(count); count(); t.join(); }",
        "data race",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(tmp_path, fault):
    source, message = FAULTS[fault]
    program = tmp_path / "program"
    flags = _sanitizers.flags("thread" if fault == "thread" else "address")
    command = ["g++", "-x", "c++", "-", *flags, "-pthread", "-o", program]
    subprocess.run(command, input=source, text=True, check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode != 0 and message in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["address", "thread"])
def test_cache(kind):
    environment = os.environ | {"FP8GEMM_SANITIZE": kind}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        HERE / "test_cache.py",
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
