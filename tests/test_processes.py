# SPDX-License-Identifier: Apache-2.0
"""Several processes: a job of two over loopback, and one that finds what another one compiled."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def start(program: str, *arguments: str) -> subprocess.Popen:
    """Starts a program of this folder, which finds the package as this process does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, str(HERE / program), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Returns what a process printed; it must have succeeded."""
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, err[-4000:]
    return out


@pytest.mark.slow
def test_two_processes_train_as_one_device():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [start("_two_processes.py", port, str(index)) for index in range(2)]
    for process in processes:
        finish(process)


@pytest.fixture
def compile_in_new_process(tmp_path):
    """Returns a function that compiles in a new process and returns the cache's misses."""
    return lambda num_sms: int(finish(start("_cached_program.py", str(tmp_path), str(num_sms))))


@pytest.mark.slow
def test_persistent_compilation_cache(compile_in_new_process):
    assert compile_in_new_process(64) > 0
    assert compile_in_new_process(64) == 0, "compiled again in another process"
    assert compile_in_new_process(65) > 0, "taken for a program with other options"
