# SPDX-License-Identifier: Apache-2.0
"""The program that compute-sanitizer watches, run simulated: it must be right by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_program_runs_simulated(simulated):
    command = [sys.executable, str(Path(__file__).with_name("sanitizer_program.py")), "sim"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "all results are right" in run.stdout
