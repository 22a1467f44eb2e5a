# SPDX-License-Identifier: Apache-2.0
"""Makes the calls of .ci/gpu-session where there is no GPU."""

import os
import shutil
import subprocess
from pathlib import Path

_SMI = "#!/bin/sh\necho '9.0, Invented, 580.1'\n"


def make_tools(folder: Path, python: str) -> Path:
    """Returns a new folder for the search path, with a GPU to be seen and a Python."""
    folder.mkdir()
    for name, text in (("python3", python), ("nvidia-smi", _SMI)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def make_call(
    checkout: Path, tools: Path, number: int, environment: dict[str, str]
) -> tuple[subprocess.CompletedProcess, dict[str, Path]]:
    """Returns the run of a call, and what it kept by name."""
    out = checkout / f"out{number}"
    shutil.rmtree(out, ignore_errors=True)
    run = subprocess.run(
        ["bash", str(checkout / ".ci/gpu-session"), str(number)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "OUT": str(out), **environment},
        cwd="/",
    )
    return run, {path.name: path for path in out.iterdir()} if out.exists() else {}
