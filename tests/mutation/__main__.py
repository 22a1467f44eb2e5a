# SPDX-License-Identifier: Apache-2.0
"""Tries all mutants, or those whose names contain one of the arguments, and prints a table."""

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

from mutation.build import build_engine  # noqa: E402
from mutation.catalogue import MUTANTS  # noqa: E402
from mutation.harness import try_mutant, try_original  # noqa: E402

_THREADS = 2


def main(*names: str) -> int:
    """Returns the exit status: 0 if every mutant is caught and the original is clean."""
    mutants = [m for m in MUTANTS if not names or any(name in m.name for name in names)]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(_THREADS) as pool:
        folder = Path(temporary)
        engine = build_engine(folder, threads=_THREADS)
        original = pool.submit(try_original, folder / "original", engine, mutants)
        tries = [pool.submit(try_mutant, folder / str(i), engine, m) for i, m in enumerate(mutants)]
        survivors = []
        for mutant, future in zip(mutants, tries, strict=True):
            verdict = future.result()
            if not verdict.is_caught:
                survivors.append(mutant.name)
            first_line = " ".join(verdict.detail.split())[:100]
            outcome = verdict.outcome or "SURVIVED"
            print(f"{outcome:9} {verdict.runs:3} {mutant.name:44} {first_line}", flush=True)
        clean = original.result()
    seconds = time.monotonic() - start
    print(f"original: {clean.outcome or 'clean'} in {clean.runs} runs {clean.detail}")
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants caught in {seconds:.0f} s")
    return 1 if survivors or clean.is_caught else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
