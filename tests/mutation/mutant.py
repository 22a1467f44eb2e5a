# SPDX-License-Identifier: Apache-2.0
"""What a mutant is, and how its edit is applied."""

import dataclasses
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "kernels"


class StaleMutantError(Exception):
    """The text a mutant replaces is not in its file exactly once: the kernel has changed."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One planted bug.

    `kernels` are keys without the number of stages; each runs the problem made for it, or
    `problems`, by name (problems.py).
    """

    name: str
    file: str  # under csrc/kernels
    old: str
    new: str
    breaks: str  # what the bug is, in one sentence
    kernels: tuple[str, ...]
    problems: tuple[str, ...] = ()

    def source(self) -> str:
        """Returns the mutated file.

        Raises:
            StaleMutantError: The file does not hold `old` exactly once.
        """
        text = (KERNELS / self.file).read_text()
        count = text.count(self.old)
        if count != 1:
            raise StaleMutantError(
                f"mutant {self.name!r}: csrc/kernels/{self.file} holds its text {count} times; "
                "adapt it to the kernel as it is now"
            )
        return text.replace(self.old, self.new)
