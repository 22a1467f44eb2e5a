# SPDX-License-Identifier: Apache-2.0
"""Fuzzes all targets, or those named: `python -m tests.fuzz [--inputs N] [--seed S] [NAME...]`."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.targets import TARGETS, fuzz  # noqa: E402


def main() -> int:
    """Returns the exit status: 0 if no target has a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], default=[])
    parser.add_argument("--inputs", type=int, default=100_000, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = False
    for name in options.targets or TARGETS:
        start = time.monotonic()
        faults = fuzz(name, options.inputs, options.seed)
        print(f"{name}: {options.inputs} inputs, {sum(faults.values())} faults", end="")
        print(f", {time.monotonic() - start:.0f} s", flush=True)
        for fault, count in faults.items():
            print(f"  {count} x {fault}")
        failed |= bool(faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
