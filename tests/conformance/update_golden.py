# SPDX-License-Identifier: Apache-2.0
"""Runs every conformance case on the GPU and writes its golden file.

    python tests/conformance/update_golden.py [FOLDER]

Needs a Hopper GPU; writes <gpu>.json into FOLDER, or into golden/ beside this file, and prints
which cases differ from their models. Review each difference before committing: either the model and
the simulator are wrong, or the kernel is.
"""

import datetime
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

import golden  # noqa: E402
import worlds  # noqa: E402
from gpu_runs import run_on_gpu  # noqa: E402


def _commit() -> str:
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=worlds.CSRC)
    return result.stdout.strip() or "unknown"


def main(folder: Path = golden.FOLDER) -> int:
    """Runs, writes, reports; returns the exit status."""
    cases = worlds.all_cases()
    with tempfile.TemporaryDirectory() as scratch:
        results = run_on_gpu(list(cases), Path(scratch))
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
    path = folder / f"{machine['gpu'].lower().replace(' ', '-')}.json"
    golden.write(path, machine, entries)
    print(f"{len(entries)} of {len(cases)} cases written to {path}")
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
