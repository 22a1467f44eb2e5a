# SPDX-License-Identifier: Apache-2.0
"""The two tiers of the suite: `make test` leaves out what is marked slow, `make test-all` nothing.

Of a test that is marked `sampled(n)` the fast tier has one in n of the parameter sets, which
conftest.py sees to; of the kernels it has a covering set. What it leaves out is guarded by a stamp:
digests of the sources that the full tier last passed with, as code, without comments.
"""

import functools
import hashlib
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import pytest
from _source import ROOT, is_generated, python_code

STAMP = Path(__file__).parent / "full_tier.json"
# What each digest of the stamp is over: folders, or files.
PARTS = {
    "kernels": ("csrc/kernels", "csrc/shared", "csrc/gemm/candidates.h"),
    "host": ("csrc", "CMakeLists.txt"),
    "python": ("jax_fp8gemm",),
}
# What a run may skip that the stamp is for: what no machine without a GPU has, what other commands
# run, and the frameworks, which the package does without.
MAY_SKIP = (
    "a fault of memory",
    "could not import 'torch'",
    "for the fast tier",
    "needs a Hopper GPU",
    "needs a build of its own",
    "needs a sanitizer",
    "needs maxtext",
    "needs qwix",
    "needs the package torch",
    "needs tokamax",
    "needs two devices, as tests/_devices.py gives",
    "no golden file: no GPU has run",
    "no table is shipped: no GPU",
    "the simulator suite runs this one",
    "XLA folds a bit cast of a transposed constant wrongly",
)
_CPP_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)


def features(key: str) -> set[Hashable]:
    """Returns what a kernel has that some kernel of a covering set must have too."""
    if key.startswith("quantize"):
        family, x, dtype, scales = key.split(".")
        return {
            ("input of a quantizer", family, x),
            ("result of a quantizer", family, dtype),
            ("scales of a quantizer", family, scales),
        }
    family, tile, consumers, _, cluster, a, b, d, *flags = key.split(".")
    return {
        ("tile", family, tile, consumers, cluster, *(flag for flag in flags if flag != "acc")),
        ("types", a, b, d, "acc" in flags),
        ("operands of a family", family, a, b),
        ("result of a family", family, d, "acc" in flags),
        ("cluster of a family", family, cluster),
    }


@functools.cache
def _chosen(keys: tuple[str, ...]) -> frozenset[str]:
    have = {key: features(key) for key in keys}
    missing, chosen = set().union(*have.values()), set()
    while missing:
        best = max(keys, key=lambda key: len(have[key] & missing))
        chosen.add(best)
        missing -= have[best]
    return frozenset(chosen)


def covering(keys: Sequence[str]) -> list[str]:
    """Returns kernels that have every feature of `keys` between them, in the order of `keys`.

    Greedy: always one of those with the most features that none has yet, the first of them.
    """
    chosen = _chosen(tuple(keys))
    return [key for key in keys if key in chosen]


def slow_unless(is_fast: bool, *values, id: str | None = None):
    """Returns a parameter set that the fast tier leaves out unless `is_fast`."""
    return pytest.param(*values, id=id, marks=() if is_fast else pytest.mark.slow)


def in_sample(name: str, period: int) -> bool:
    """Returns whether a name is one of about every `period` that the fast tier has."""
    return zlib.crc32(name.encode()) % period == 0


def rotating(rows: Iterable, columns: Iterable, period: int) -> list:
    """Returns all pairs as parameters: one in `period` is fast, rows and columns taking turns."""
    return [
        slow_unless((i + j) % period == 0, row, column)
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]


# ---- The stamp ---------------------------------------------------------------------------------


def as_code(name: str, text: str) -> str:
    """Returns a file as the compiler sees it: without comments, and without space at the ends."""
    if name.endswith(".py"):
        text = python_code(text)
    elif not is_generated(text):
        text = _CPP_COMMENT.sub(lambda match: match[1] or "", text)
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def digest(part: str) -> str:
    """Returns the digest of one of PARTS."""
    found: set[Path] = set()
    for name in PARTS[part]:
        path = ROOT / name
        found |= {path} if path.is_file() else {p for p in path.rglob("*") if p.is_file()}
    total = hashlib.sha256()
    for path in sorted(p for p in found if p.suffix not in (".md", ".pyc", ".so")):
        total.update(f"{path.relative_to(ROOT)}\n{as_code(path.name, path.read_text())}\n".encode())
    return total.hexdigest()


def digests() -> dict[str, str]:
    """Returns the digests of the sources as they are."""
    return {part: digest(part) for part in PARTS}


def changed() -> list[str]:
    """Returns the parts that have changed since the full tier last passed."""
    accepted = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    return [part for part, now in digests().items() if accepted.get(part) != now]


def left_out(results: Path) -> set[str]:
    """Returns why tests of a run were skipped that the full tier must have."""
    reasons = set()
    for skipped in ElementTree.parse(results).iter("skipped"):
        text = f"{skipped.get('message')} {skipped.text}"
        if not any(reason in text for reason in MAY_SKIP):
            reasons.add(text.partition("\n")[0])
    return reasons


def accept(before: str, results: str) -> int:
    """Writes the stamp, if a run began with these sources and left nothing out."""
    if json.loads(Path(before).read_text()) != digests():
        print("no stamp: the sources have changed since the tests began")
        return 1
    if reasons := left_out(Path(results)):
        print("no stamp: tests were skipped that the full tier must have:", *reasons, sep="\n  ")
        return 1
    STAMP.write_text(json.dumps(digests(), indent=2) + "\n")
    return 0


def main(command: str, *arguments: str) -> int:
    """Runs `changed`, `digests`, or `accept DIGESTS_JSON JUNIT_XML`; returns the exit status."""
    if command == "accept":
        return accept(*arguments)
    if command == "digests":
        print(json.dumps(digests()))
        return 0
    parts = changed()
    print(f"changed since the full tier passed: {', '.join(parts) or 'nothing'}")
    return 1 if parts else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
