# SPDX-License-Identifier: Apache-2.0
"""Reads a cubin: its one kernel's code and the resource attributes of `.nv.info`."""

import struct
from dataclasses import dataclass

_SHT_NOBITS = 8
# Attributes of .nv.info whose value is a pair (symbol index, number).
_REGISTER_COUNT = 0x2F
_FRAME_BYTES = 0x11
_STACK_BYTES = 0x12
# An attribute starts with its format; this one carries a 16-bit size and that many bytes, all
# others put their value where the size would be.
_FORMAT_SIZED = 4


@dataclass(frozen=True)
class Cubin:
    """One kernel as ptxas left it."""

    kernel: str  # mangled name
    code: bytes  # 16 bytes per instruction
    registers: int  # per thread, at launch
    frame_bytes: int  # local memory of the kernel's own frame: arrays and spills
    stack_bytes: int  # smallest stack, frames of callees included
    image_bytes: int


def parse_cubin(image: bytes) -> Cubin:
    """Parses an image that holds exactly one kernel.

    Raises:
        ValueError: Not a 64-bit ELF, or not exactly one kernel in it.
    """
    sections = _sections(image)
    kernels = [name for name in sections if name.startswith(".text.")]
    if len(kernels) != 1:
        raise ValueError(f"expected a cubin with one kernel, found sections {kernels}")
    numbers = _largest_values(sections.get(".nv.info", b""))
    return Cubin(
        kernel=kernels[0].removeprefix(".text."),
        code=sections[kernels[0]],
        registers=numbers[_REGISTER_COUNT],
        frame_bytes=numbers[_FRAME_BYTES],
        stack_bytes=numbers[_STACK_BYTES],
        image_bytes=len(image),
    )


def _sections(image: bytes) -> dict[str, bytes]:
    if image[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF image")
    (table,) = struct.unpack_from("<Q", image, 0x28)
    count, names_index = struct.unpack_from("<HH", image, 0x3C)
    headers = [struct.unpack_from("<IIQQQQIIQQ", image, table + 64 * i) for i in range(count)]
    names = headers[names_index][4]
    sections = {}
    for name_offset, kind, _, _, offset, size, *_ in headers:
        end = image.index(b"\0", names + name_offset)
        name = image[names + name_offset : end].decode()
        sections[name] = b"" if kind == _SHT_NOBITS else image[offset : offset + size]
    return sections


def _largest_values(info: bytes) -> dict[int, int]:
    """Largest value over all functions of each attribute that is a (symbol, number) pair."""
    values = {}
    position = 0
    while position + 4 <= len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, position)
        position += 4
        if form != _FORMAT_SIZED:
            continue
        if size == 8:
            _, number = struct.unpack_from("<II", info, position)
            values[attribute] = max(values.get(attribute, 0), number)
        position += size
    return values
