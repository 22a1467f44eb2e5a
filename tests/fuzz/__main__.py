# SPDX-License-Identifier: Apache-2.0
"""Fuzzes all targets, or those named: `python -m tests.fuzz [--inputs N] [--seed S] [NAME...]`.

What a run finds is in build/fuzz/NAME: `log`, `corpus`, and for a fault the input.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported, and for the targets' processes

from fuzz import native  # noqa: E402
from fuzz.targets import CORPUS, TARGETS, corpus, opened  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 16384  # of an input
_KEPT = (60, 2000)  # inputs of a target, and bytes of an input, that corpus/ has at most


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode())


def run(name: str, folder: Path, *arguments: str | Path) -> tuple[int, str]:
    """Runs a target in a process of its own; returns its exit status and what libFuzzer says."""
    options = [f"-max_len={MAX_BYTES}", "-timeout=60", "-rss_limit_mb=4096", "-print_final_stats=1"]
    with opened(name) as target:
        entries = [f'"{_escaped(word)}"\n' for word in target.words]
    if entries:
        (folder / "words").write_text("".join(entries))
        options.append(f"-dict={folder}/words")
    command = [sys.executable, "-m", "tests.fuzz.guided", name, *options]
    with open(folder / "log", "w+") as log:
        status = subprocess.run(
            [*command, f"-artifact_prefix={folder}/", *arguments],
            stdout=log,
            stderr=log,
            cwd=ROOT,
            check=False,
        ).returncode
    return status, (folder / "log").read_text(errors="replace")


def seeded(name: str, folder: Path) -> Path:
    """Returns a folder with the seeds of a target and with its corpus."""
    folder.mkdir()
    with opened(name) as target:
        for i, data in enumerate([*target.seeds, *corpus(name)]):
            (folder / str(i)).write_bytes(data)
    return folder


def fuzz(name: str, inputs: int, seed: int, folder: Path) -> bool:
    """Gives a target so many inputs; prints what came of it and returns whether it has a fault."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "corpus").mkdir()
    start = time.monotonic()
    status, log = run(
        name,
        folder,
        f"-runs={inputs}",
        f"-seed={seed}",
        folder / "corpus",
        seeded(name, folder / "seeds"),
    )
    seconds = time.monotonic() - start
    (units,) = re.findall(r"number_of_executed_units: (\d+)", log) or ["?"]
    reached = re.findall(r"cov: (\d+) ft: (\d+)", log)
    edges, features = (of[-1] for of in zip(*reached, strict=True)) if reached else ("0", "0")
    first = f"{reached[0][0]} by the seeds, " if reached else ""
    print(f"{name}: {units} inputs, {edges} edges ({first}{features} features), ", end="")
    print(f"{seconds:.0f} s, {'no fault' if status == 0 else f'a fault: {folder}/log'}", flush=True)
    return status != 0


def keep(name: str, folder: Path) -> None:
    """Adds to corpus/ the shortest inputs that together reach more than the seeds do."""
    with tempfile.TemporaryDirectory() as temporary:
        merged = Path(temporary) / "merged"
        merged.mkdir()
        run(
            name,
            Path(temporary),
            "-set_cover_merge=1",
            merged,
            seeded(name, Path(temporary) / "seeds"),
            folder / "corpus",
        )
        with opened(name) as target:
            found = {path.read_bytes() for path in merged.iterdir()} - {*target.seeds}
    num_inputs, num_bytes = _KEPT
    chosen = sorted(found, key=lambda data: (len(data), data))[:num_inputs]
    lines = [json.dumps(data.decode("latin-1")) for data in chosen if len(data) <= num_bytes]
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{name}.txt").write_text("".join(line + "\n" for line in lines))


def main() -> int:
    """Returns the exit status: 0 if no target has a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], default=[])
    parser.add_argument("--inputs", type=int, default=100_000, help="of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--keep", action="store_true", help="write what reaches more to corpus/")
    options = parser.parse_args()
    native.build()
    failed = False
    for name in options.targets or TARGETS:
        folder = options.folder.resolve() / name
        failed |= fuzz(name, options.inputs, options.seed, folder)
        if options.keep:
            keep(name, folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
