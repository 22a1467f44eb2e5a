# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, forks, and exits amid the work; many threads and processes; memory of long runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Whole programs, each of which imports jax and compiles: seconds. The parts of C++ have tests in
# the fast tier: interrupts_test, runtime_nvrtc_test, sim_engine_test and sim_driver_test.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("extension")]
# On cores of one's own; where more runs than there are cores, everything takes longer.
SECONDS_TO_ANSWER = 2.0 * max(1.0, os.getloadavg()[0] / os.cpu_count())


@pytest.fixture
def start(tmp_path):
    """Returns a function that starts a program of _ending_program.py on a fresh cache."""
    processes = []
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_FP8GEMM_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }

    def start_one(name: str, *arguments: str) -> subprocess.Popen:
        # jax warns of forks.
        command = [sys.executable, "-W", "ignore", str(HERE / "_ending_program.py")]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        command += [name, *arguments]
        processes.append(subprocess.Popen(command, env=environment, **pipes))
        return processes[-1]

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen, timeout: float = 240) -> str:
    """Returns what a process printed; it must have succeeded."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err[-4000:]
    return out


def test_ctrl_c_stops_what_runs_on_another_thread(start):
    """Its error comes out of `block_until_ready`, before Python raises KeyboardInterrupt."""
    process = start("simulate_asynchronously")
    assert process.stdout.readline() == "go\n"
    time.sleep(2)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert time.monotonic() - begin < SECONDS_TO_ANSWER
    assert process.returncode in (-signal.SIGINT, 1)
    assert "CANCELLED: jax_fp8gemm.gemm.v1: interrupted by Ctrl-C" in err


@pytest.mark.parametrize("seconds", [0.1, 1.0])
@pytest.mark.parametrize("program", ["simulate", "compile_many"])
def test_ctrl_c_is_answered(start, program, seconds):
    process = start(program)
    assert process.stdout.readline() == "go\n"
    time.sleep(seconds)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert time.monotonic() - begin < SECONDS_TO_ANSWER
    assert process.returncode == -signal.SIGINT, err[-2000:]
    assert "KeyboardInterrupt" in err
    # What XLA says of the work that it was at comes before.
    cancelled = err.count("JaxRuntimeError: CANCELLED: ")
    assert err.count("JaxRuntimeError: ") == cancelled
    if program == "compile_many":  # by NVRTC, without XLA
        assert cancelled == 0
    elif seconds == 1.0:  # by when the simulation has begun, however busy the machine is
        assert cancelled == 1


def test_ctrl_c_stops_nothing_where_a_program_handles_it(start):
    process = start("simulate_with_handler")
    assert process.stdout.readline() == "go\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert finish(process).splitlines() == ["handled", "finished 4096.0"]


@pytest.mark.parametrize("run", range(5))
def test_end_while_daemon_threads_compile(start, run):
    process = start("end_while_compiling")
    assert process.stdout.readline() == "go\n"
    begin = time.monotonic()
    assert finish(process) == ""
    assert time.monotonic() - begin < 10


def test_fork_after_use_and_amid_compilations(start):
    used, known, fresh, after = finish(start("fork")).splitlines()
    for line in (used, known, after):
        assert line.endswith(" bytes"), line
    assert "was forked while its parent compiled" in fresh and '"spawn"' in fresh


def test_spawn_amid_compilations(start):
    assert finish(start("spawn")) == "True\n"


def test_processes_and_threads_compile_each_kernel_once(start, tmp_path):
    """8 processes of 8 threads want the same 8 kernels, on a directory that does not exist yet."""
    processes = [start("compile_some") for _ in range(8)]
    builds = [int(finish(process)) for process in processes]
    assert sum(builds) == 8, builds
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 8


def test_programs_are_collected_while_others_run(start):
    assert finish(start("collect")) == "[]\n"


def test_memory_is_flat_over_calls(start):
    assert float(finish(start("many_calls", "2000"))) < 500


def left_of_30_shapes(start, keep: str, *products: str) -> dict[str, int]:
    """Returns how many objects of ours each product leaves."""
    lines = finish(start("many_shapes", "30", keep, *products), timeout=900).splitlines()
    left = {line.split()[0]: int(line.split()[2]) for line in lines}
    assert tuple(left) == products
    return left


def test_nothing_of_ours_is_left_of_many_shapes(start):
    """What is left is JAX's own."""
    assert left_of_30_shapes(start, "", "xla", "sim") == {"xla": 0, "sim": 0}


def test_what_is_kept_of_many_shapes_is_seen(start):
    assert left_of_30_shapes(start, "keep", "xla")["xla"] >= 30


def test_the_handler_keeps_nothing_of_many_shapes(start):
    assert float(finish(start("many_handled_shapes"), timeout=600)) < 100
