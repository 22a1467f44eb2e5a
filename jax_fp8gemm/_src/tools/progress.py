# SPDX-License-Identifier: Apache-2.0
"""Says on a terminal how far a command is."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")
_ERASE = "\033[K"  # what stands from the cursor on
# What says how far each command is that is at work, one inside the other. The last one is shown.
_at_work: list[Callable[[], None]] = []


def progress(items: Iterable[_T], label: str, total: int | None = None) -> Iterator[_T]:
    """Yields items, and says on stderr how many have been dealt with, where that is a terminal.

    The cursor stays at the line's beginning, so that what a command prints next takes its place.
    Inside another's, the line takes the other's place until it is done.

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

    _at_work.append(say)
    try:
        say()
        for item in items:
            yield item
            done += 1
            say()
    finally:
        _at_work.remove(say)
        print(_ERASE, end="", file=sys.stderr, flush=True)
        if _at_work:
            _at_work[-1]()
