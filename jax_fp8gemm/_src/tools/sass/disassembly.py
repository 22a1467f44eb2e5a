# SPDX-License-Identifier: Apache-2.0
"""Instructions of sm_90 code: text from nvdisasm, scheduling fields from the encoding itself."""

import functools
import json
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jax_fp8gemm._src.native.nvidia import nvidia_folders

INSTRUCTION_BYTES = 16
# Barrier number that means "none" in a scheduling field.
NO_BARRIER = 7

_REGISTER = re.compile(r"\bR(\d+)")
_TARGET = re.compile(r"(?:^|,)(0x[0-9a-f]+)$")


@dataclass(frozen=True)
class Control:
    """Scheduling fields: bits 105-125 of an instruction, set by ptxas for the issue logic.

    bits 0-3 stall, 4 yield (inverted), 5-7 write barrier, 8-10 read barrier, 11-16 wait mask,
    17-20 reuse.
    """

    stall: int  # cycles before the warp may issue again
    yield_hint: bool  # the scheduler should prefer another warp next
    write_barrier: int  # signalled when the result is written
    read_barrier: int  # signalled when the operands have been read
    wait_mask: int  # barriers to wait for before issue
    reuse: int  # operand slots kept in the reuse cache

    @classmethod
    def decode(cls, encoding: bytes) -> "Control":
        """Reads the fields of one 16-byte instruction."""
        (high,) = struct.unpack_from("<Q", encoding, 8)
        bits = high >> 41
        return cls(
            stall=bits & 15,
            yield_hint=not bits >> 4 & 1,
            write_barrier=bits >> 5 & 7,
            read_barrier=bits >> 8 & 7,
            wait_mask=bits >> 11 & 63,
            reuse=bits >> 17 & 15,
        )


@dataclass(frozen=True)
class Instruction:
    """One instruction; `operands` are nvdisasm's, comma separated, branch targets absolute."""

    address: int  # bytes from the start of the kernel
    opcode: str
    operands: str
    predicate: str  # "" or e.g. "@!P0"
    control: Control

    @property
    def name(self) -> str:
        """Opcode without its modifiers, e.g. `QGMMA`."""
        return self.opcode.partition(".")[0]

    @property
    def branch_target(self) -> int | None:
        """Address a BRA goes to; None for all other instructions."""
        match = _TARGET.search(self.operands) if self.name == "BRA" else None
        return int(match[1], 16) if match else None

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction can follow this one."""
        if self.opcode == "BRA":
            return bool(self.predicate) or "," in self.operands
        return self.name not in ("EXIT", "RET", "BRX", "JMP") or bool(self.predicate)

    @property
    def highest_register(self) -> int:
        """Largest general register it touches, counting whole vectors; -1 if none."""
        registers = [int(r) for r in _REGISTER.findall(self.operands)]
        if not registers:
            return -1
        first, last = registers[0], registers[-1]
        if self.name in ("QGMMA", "HGMMA"):
            (columns,) = re.findall(r"64x(\d+)x", self.opcode)
            return max(*registers, first + int(columns) // 2 - 1)
        if self.name in ("STG", "STS", "STL", "STSM"):
            return max(*registers, last + self._vector_length() - 1)
        return max(*registers, first + self._vector_length() - 1)

    def _vector_length(self) -> int:
        modifiers = self.opcode.split(".")[1:]
        if "128" in modifiers or (self.name in ("STSM", "LDSM") and "4" in modifiers):
            return 4
        wide = "64" in modifiers or "WIDE" in modifiers or self.opcode == "CS2R"
        return 2 if wide else 1


@functools.cache
def find_nvdisasm() -> Path | None:
    """Path of nvdisasm, from a wheel or from PATH."""
    for root in nvidia_folders():
        for path in root.glob("*/bin/nvdisasm"):
            return path
    on_path = shutil.which("nvdisasm")
    return Path(on_path) if on_path else None


def disassemble(codes: Sequence[bytes]) -> list[list[Instruction]]:
    """Disassembles the code of several kernels with one run of nvdisasm.

    nvdisasm takes 0.3 s to start and a few milliseconds per kernel, so the codes are laid end to
    end and given to it as one raw binary.
    """
    blob = b"".join(codes)
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(blob)
        file.flush()
        command = [find_nvdisasm(), "--binary", "SM90a", "-json", file.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    texts = json.loads(output)[1][0]["sass-instructions"]
    if len(texts) * INSTRUCTION_BYTES != len(blob):
        raise ValueError(f"nvdisasm printed {len(texts)} instructions for {len(blob)} bytes")

    kernels = []
    start = 0
    for code in codes:
        first = start // INSTRUCTION_BYTES
        count = len(code) // INSTRUCTION_BYTES
        kernels.append(_instructions(code, texts[first : first + count], start))
        start += len(code)
    return kernels


def _instructions(code: bytes, texts: list[dict], base: int) -> list[Instruction]:
    """Joins nvdisasm's text with the encodings, addresses counted from the kernel's start."""
    result = []
    for index, text in enumerate(texts):
        address = index * INSTRUCTION_BYTES
        operands = text.get("operands", "")
        if "control-flow" in text.get("other-attributes", {}):
            operands = _TARGET.sub(
                lambda m: m[0].replace(m[1], hex(int(m[1], 16) - base)), operands
            )
        control = Control.decode(code[address : address + INSTRUCTION_BYTES])
        predicate = text.get("predicate", "")
        result.append(Instruction(address, text["opcode"], operands, predicate, control))
    return result
