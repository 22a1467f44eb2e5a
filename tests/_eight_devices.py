# SPDX-License-Identifier: Apache-2.0
"""Runs a program in a process that has 8 virtual CPU devices: XLA reads its flags once."""

import os
import subprocess
import sys
from pathlib import Path


def run_with_eight_devices(*arguments: str | Path) -> str:
    """Runs Python with arguments, and returns what it printed; fails with what it complained of."""
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8",
    }
    command = [sys.executable, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout
