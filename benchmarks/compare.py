# SPDX-License-Identifier: Apache-2.0
"""One record beside an earlier one of the same device: which products of ours became slower."""

import statistics
from typing import Any, NamedTuple

# Medians of samples with a flushed L2 differ by 1 to 2 % from run to run; this is beyond that.
MAX_RATIO = 1.05


class Change(NamedTuple):
    """A case of both records: new over old median, or the new status where there is none."""

    name: str
    ratio: float | None
    status: str

    @property
    def is_worse(self) -> bool:
        """Whether it became slower, or is no longer measured."""
        return self.ratio is None or self.ratio > MAX_RATIO


def _ours(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{c['suite']}/{c['name']}": c["results"]["ours"] for c in record["cases"]}


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Returns what became of each case that was measured in `old` and is in `new`.

    Raises:
        ValueError: The records are of different devices, or have no case in common.
    """
    devices = [record["environment"]["device"] for record in (old, new)]
    if devices[0] != devices[1]:
        raise ValueError(f"the earlier record is of {devices[0]!r}, this one of {devices[1]!r}")
    before, after, found = _ours(old), _ours(new), []
    for name in (name for name in before if name in after):
        if before[name]["status"] != "measured":
            continue
        status, ratio = after[name]["status"], None
        if status == "measured":
            medians = (statistics.median(r[name]["samples_s"]) for r in (after, before))
            ratio = next(medians) / next(medians)
        found.append(Change(name, ratio, status))
    if not found:
        raise ValueError("the earlier record has measured no case of this one")
    return found


def report(found: list[Change]) -> str:
    """Returns a table of the changes, the worst first."""
    rows = ["| case | time, new / old | |", "|---|---|---|"]
    for change in sorted(found, key=lambda c: -(c.ratio or float("inf"))):
        ratio = change.status if change.ratio is None else f"{change.ratio:.3f}"
        rows.append(f"| {change.name} | {ratio} | {'SLOWER' if change.is_worse else ''} |")
    return "\n".join(rows)
