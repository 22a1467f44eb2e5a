# SPDX-License-Identifier: Apache-2.0
"""Says on a terminal how far a command is."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")
_ERASE = "\033[K"  # what stands from the cursor on


def progress(items: Iterable[_T], label: str, total: int | None = None) -> Iterator[_T]:
    """Yields items, and says on stderr how many have been dealt with, where that is a terminal.

    The cursor stays at the line's beginning, so that what a command prints next takes its place.

    Args:
        items: What is yielded.
        label: What is being done, in a word.
        total: How many items there are, None if that is not known.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    start, done = time.monotonic(), 0

    def say() -> None:
        of = "" if total is None else f" of {total}"
        text = f"{label}: {done}{of}, {time.monotonic() - start:.0f} s"
        print(f"{_ERASE}{text}", end="\r", file=sys.stderr, flush=True)

    try:
        say()
        for item in items:
            yield item
            done += 1
            say()
    finally:
        print(_ERASE, end="", file=sys.stderr, flush=True)
