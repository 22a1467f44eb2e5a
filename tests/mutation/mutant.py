# SPDX-License-Identifier: Apache-2.0
"""What a mutant is, and how its edit is applied."""

import dataclasses
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CSRC = ROOT / "csrc"


class StaleMutantError(Exception):
    """The text a mutant replaces is not in its file exactly once: the kernel has changed."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One planted bug.

    `kernels` are keys without the number of stages; each runs the problem made for it, or
    `problems`, by name (problems.py).
    """

    name: str
    file: str  # as it is included: under csrc/kernels, or shared/
    old: str
    new: str
    breaks: str  # what the bug is, in one sentence
    kernels: tuple[str, ...]
    problems: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file as it is."""
        return (_CSRC if self.file.startswith("shared/") else _CSRC / "kernels") / self.file

    def source(self) -> str:
        """Returns the mutated file.

        Raises:
            StaleMutantError: The file does not hold `old` exactly once.
        """
        text = self.path.read_text()
        count = text.count(self.old)
        if count != 1:
            raise StaleMutantError(
                f"mutant {self.name!r}: {self.path.relative_to(ROOT)} holds its text {count} "
                "times; adapt it to the kernel as it is now"
            )
        return text.replace(self.old, self.new)
