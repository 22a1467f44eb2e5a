# SPDX-License-Identifier: Apache-2.0
"""NVRTC through ctypes, so that tests compile kernels with every NVRTC wheel found side by side.

The extension loads one NVRTC per process; the tests want CUDA 13 and CUDA 12 in the same run. A
compilation releases the GIL, so two threads compile two kernels at once.
"""

import ctypes
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jax_fp8gemm._src.native.nvidia import nvidia_folders

# Folder of the library inside the `nvidia` namespace package, by wheel.
_WHEEL_FOLDERS = ("cu13/lib", "cuda_nvrtc/lib")


class NvrtcError(RuntimeError):
    """A compilation failed; the message holds NVRTC's log."""


@dataclass(frozen=True)
class Compiled:
    """What NVRTC made of one program."""

    cubin: bytes
    log: str  # ptxas remarks and warnings appear here although the compilation succeeded


@dataclass(frozen=True)
class Nvrtc:
    """One loaded libnvrtc."""

    path: Path
    version: tuple[int, int]
    _library: ctypes.CDLL = field(repr=False)

    @property
    def name(self) -> str:
        """Version as text, for test ids and golden files, e.g. `13.5`."""
        return f"{self.version[0]}.{self.version[1]}"

    def compile(
        self, source: str, options: Sequence[str], headers: Mapping[str, str] | None = None
    ) -> Compiled:
        """Compiles `source` to a cubin.

        Args:
            source: Text of the program.
            options: NVRTC options; must name a real architecture (`sm_90a`) to give a cubin.
            headers: Include name to text.

        Raises:
            NvrtcError: The program does not compile.
        """
        headers = headers or {}
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            source.encode(),
            b"kernel.cu",
            len(headers),
            _strings(headers.values()),
            _strings(headers.keys()),
        )
        try:
            status = self._library.nvrtcCompileProgram(program, len(options), _strings(options))
            log = self._fetch(program, "ProgramLog").decode().rstrip("\0")
            if status != 0:
                raise NvrtcError(f"NVRTC {self.name}: {self._describe(status)}\n{log}")
            return Compiled(self._fetch(program, "CUBIN"), log)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _fetch(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise NvrtcError(f"NVRTC {self.name}: {function}: {self._describe(status)}")

    def _describe(self, status: int) -> str:
        return self._library.nvrtcGetErrorString(status).decode()


@functools.cache
def find_all() -> tuple[Nvrtc, ...]:
    """Loads every NVRTC that wheels of this environment brought, newest first."""
    found = []
    for root in nvidia_folders():
        for folder in _WHEEL_FOLDERS:
            libraries = sorted((root / folder).glob("libnvrtc.so.*"))
            found += [_load(path) for path in libraries]
    return tuple(sorted(found, key=lambda n: n.version, reverse=True))


def _load(path: Path) -> Nvrtc:
    # Some wheels' libnvrtc has no RPATH: its builtins are found only when already loaded.
    for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(path))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return Nvrtc(path, (major.value, minor.value), library)


def _strings(texts) -> ctypes.Array:
    encoded = [text.encode() for text in texts]
    return (ctypes.c_char_p * len(encoded))(*encoded)
