# SPDX-License-Identifier: Apache-2.0
"""Runs every conformance case on the GPU and writes its golden file.

    python tests/conformance/update_golden.py

Needs a Hopper GPU; writes golden/<gpu>.json and prints which cases differ from their models. Review
each difference before committing: either the model and the simulator are wrong, or the kernel is.
"""

import datetime
import subprocess
import sys
import tempfile
from pathlib import Path

import golden
import worlds
from gpu_runs import run_on_gpu


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=worlds.CSRC)
    return result.stdout.strip() or "unknown"


def main() -> int:
    """Runs, writes, reports; returns the exit status."""
    cases = worlds.all_cases()
    with tempfile.TemporaryDirectory() as folder:
        results = run_on_gpu(list(cases), Path(folder))
    if not results.device:
        print("no GPU ran anything:", next(iter(results.failures.values()), "unknown reason"))
        return 1
    for name, failure in results.failures.items():
        print(f"FAILED  {name}: {failure}")
    entries = {name: golden.entry(cases[name], out) for name, out in results.outputs.items()}
    for name in (name for name, entry in entries.items() if "bytes" in entry):
        print(f"DIFFERS {name}: not what its model says")
    machine = {
        **results.device,
        "nvrtc": worlds.find_all()[0].name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
    }
    path = golden.FOLDER / f"{machine['gpu'].lower().replace(' ', '-')}.json"
    golden.write(path, machine, entries)
    print(f"{len(entries)} of {len(cases)} cases written to {path}")
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
