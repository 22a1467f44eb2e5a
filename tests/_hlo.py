# SPDX-License-Identifier: Apache-2.0
"""Reads optimized HLO text: the kernels of the entry computation and what they consist of."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"calls=%?([\w.\-]+)")
# What only moves data. A fusion of nothing else is a transpose or a copy kernel.
_LAYOUT_OPCODES = {"parameter", "bitcast", "copy", "transpose", "reshape", "slice", "tuple"}
_NO_KERNEL = {"parameter", "bitcast", "tuple", "get-tuple-element", "constant"}


@dataclass(frozen=True)
class Instruction:
    """One HLO instruction; `text` is everything after the opening parenthesis."""

    name: str
    type: str
    opcode: str
    text: str

    @property
    def operands(self) -> list[str]:
        """Names of what it reads."""
        return re.findall(r"%([\w.\-]+)", self.text.partition(")")[0])

    @property
    def op_name(self) -> str:
        """Where it comes from in the program, with JAX's named scopes."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""


@dataclass(frozen=True)
class Module:
    """A parsed module; `header` is its first line."""

    header: str
    entry: Sequence[Instruction]
    computations: Mapping[str, Sequence[Instruction]]

    def kernels(self) -> list[Instruction]:
        """Entry instructions that launch something."""
        return [i for i in self.entry if i.opcode not in _NO_KERNEL]

    def custom_calls(self, prefix: str) -> list[Instruction]:
        """Entry instructions that call a target starting with `prefix`."""
        calls = [i for i in self.entry if i.opcode == "custom-call"]
        return [i for i in calls if f'custom_call_target="{prefix}' in i.text]

    def layout_kernels(self) -> list[Instruction]:
        """Kernels that only move data: copies, transposes, and fusions of nothing else."""
        return [i for i in self.kernels() if self._only_moves(i)]

    def _only_moves(self, instruction: Instruction) -> bool:
        if instruction.opcode != "fusion":
            return instruction.opcode in _LAYOUT_OPCODES
        fused = self.computations[_CALLED.search(instruction.text)[1]]
        return all(i.opcode in _LAYOUT_OPCODES for i in fused)


def parse_module(text: str) -> Module:
    """Parses what `compiled.as_text()` returns."""
    computations: dict[str, list[Instruction]] = {}
    entry = body = None
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            body = computations.setdefault(start[2], [])
            entry = body if start[1] else entry
        elif body is not None and (match := _INSTRUCTION.match(line)):
            body.append(Instruction(*match.groups()))
    if not entry:
        raise ValueError("no entry computation found in the HLO text")
    return Module(text.partition("\n")[0], entry, computations)
