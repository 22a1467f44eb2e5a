# SPDX-License-Identifier: Apache-2.0
"""What a micro-kernel is run on: words, arguments and tensors; and the bytes it must give."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A 2-D array in global memory and the box a TMA instruction moves of it."""

    data: np.ndarray  # (rows, columns) of the elements
    box: tuple[int, int]  # rows, columns
    type: str = "uint8"
    swizzle: int = 0  # span in bytes; 0 for none
    is_output: bool = False
    # Bytes between the rows; the bytes that no element has hold the background.
    pitch_bytes: int = 0
    background: int = 0xA5

    def __post_init__(self) -> None:
        """Gives rows the least pitch that TMA allows unless one is set."""
        row_bytes = self.data.shape[1] * self.data.itemsize
        if not self.pitch_bytes:
            object.__setattr__(self, "pitch_bytes", row_bytes + -row_bytes % 16)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.data.shape

    def memory(self, data: np.ndarray | None = None) -> np.ndarray:
        """Returns the bytes of global memory, with `data` in place of the tensor's own."""
        data = self.data if data is None else data
        rows, columns = data.shape
        memory = np.full((rows, self.pitch_bytes), self.background, np.uint8)
        memory[:, : columns * data.itemsize] = np.ascontiguousarray(data).view(np.uint8)
        return memory.ravel()


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One run of a micro-kernel."""

    words: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint32))
    out_words: int = 0
    args: tuple[int, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    num_ctas: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A problem, the kernel that runs it, and the bytes it must give."""

    name: str
    kernel: str
    problem: Problem
    expected: bytes
    # False where no document says what must come out: `expected` is a guess until a GPU speaks, and
    # the simulator is not held to it.
    documented: bool = True

    def __str__(self) -> str:
        """Names the case in test ids."""
        return self.name


def as_words(*arrays: np.ndarray) -> np.ndarray:
    """Returns the bytes of arrays, one after the other, as 32-bit words."""
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return np.frombuffer(data, np.uint32)


def as_bytes(*arrays: np.ndarray) -> bytes:
    """Returns the bytes of arrays, one after the other."""
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
