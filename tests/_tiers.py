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
        ("tile", tile, consumers, cluster, *(flag for flag in flags if flag != "acc")),
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


def changed() -> list[str]:
    """Returns the parts that have changed since the full tier last passed."""
    accepted = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    return [part for part in PARTS if accepted.get(part) != digest(part)]


def main(command: str) -> int:
    """Says what has changed (exit status 1), or accepts the sources as they are."""
    if command == "accept":
        STAMP.write_text(json.dumps({part: digest(part) for part in PARTS}, indent=2) + "\n")
        return 0
    parts = changed()
    print(f"changed since the full tier passed: {', '.join(parts) or 'nothing'}")
    return 1 if parts else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
