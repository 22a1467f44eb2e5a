# SPDX-License-Identifier: Apache-2.0
"""Runs cases on a GPU in a process of their own: a hang or a fault costs one case, not the run.

As a program, `python gpu_runs.py FOLDER CASE...` is that process: it writes each result to
FOLDER/<case>.bin and says which case it starts.
"""

import dataclasses
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import worlds
from catalogue import KERNELS
from drivers import CudaGpu

# Seconds for the first case (context and cubin are loaded) and for each further one.
_START_LIMIT_S = 120
_CASE_LIMIT_S = 20


@dataclasses.dataclass(frozen=True)
class GpuResults:
    """What a GPU made of the cases."""

    device: dict[str, str]
    outputs: dict[str, bytes]
    failures: dict[str, str]  # case to what happened instead


def run_on_gpu(
    names: Sequence[str],
    folder: Path,
    cubin: bytes | None = None,
    case_limit_s: float = _CASE_LIMIT_S,
) -> GpuResults:
    """Runs cases, starting a new process after each one that kills or hangs its process.

    Args:
        names: Cases of `worlds.all_cases`.
        folder: For the cubin and the results.
        cubin: What to load instead of what the newest NVRTC makes of the micro-kernels.
        case_limit_s: After how long a case counts as hanging.
    """
    (folder / "micro_kernels.cubin").write_bytes(cubin or worlds.compile_for_gpu().cubin)
    failures: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        started, problem = _run_process(waiting, folder, case_limit_s)
        if problem is None:
            break
        failures[started] = problem
        waiting = waiting[waiting.index(started) + 1 :]
    outputs = {}
    for name in names:
        path = folder / f"{name}.bin"
        if name not in failures and path.exists():
            outputs[name] = path.read_bytes()
    device_file = folder / "device.json"
    device = json.loads(device_file.read_text()) if device_file.exists() else {}
    return GpuResults(device, outputs, failures)


def _run_process(names: Sequence[str], folder: Path, case_limit_s: float) -> tuple[str, str | None]:
    """Runs one process; returns the case that it started last and what went wrong, if anything."""
    command = [sys.executable, str(Path(__file__)), str(folder), *names]
    # The package under test may be the source tree, which the child would not find.
    search_path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": search_path}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    started, limit = names[0], _START_LIMIT_S
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    pending, deadline = b"", time.monotonic() + limit
    try:
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return started, f"no answer for {limit:g} s: it hangs"
            chunk = os.read(process.stdout.fileno(), 4096)
            if not chunk:
                break
            *lines, pending = (pending + chunk).split(b"\n")
            if lines:
                started, limit = lines[-1].decode(), case_limit_s
                deadline = time.monotonic() + limit
    finally:
        process.kill()
        errors = process.communicate()[1].decode(errors="replace")
    if process.returncode == 0:
        return started, None
    return started, errors.strip()[-600:] or f"the process ended with {process.returncode}"


def _main(folder: Path, names: Sequence[str]) -> None:
    gpu = CudaGpu((folder / "micro_kernels.cubin").read_bytes())
    (folder / "device.json").write_text(json.dumps(gpu.describe()))
    cases = worlds.all_cases()
    for name in names:
        print(name, flush=True)
        case = cases[name]
        output = gpu.run(KERNELS[case.kernel], case.problem)
        (folder / f"{name}.bin").write_bytes(output)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
