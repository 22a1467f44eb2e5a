# SPDX-License-Identifier: Apache-2.0
"""Compiles simulators that hold a few kernels, from the device sources with one file replaced."""

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jax_fp8gemm._src.native.extension import core
from mutation.mutant import ROOT, Mutant

_CSRC = ROOT / "csrc"
_SIM = _CSRC / "sim"
# The simulator's twins come first, so that <ptx/...> and <mma/wgmma_fp8.cuh> mean them.
_INCLUDES = [f"-I{path}" for path in (_SIM / "device", _CSRC / "kernels", _CSRC)]
_FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-w"]
# What no mutant touches, compiled once: it takes six times as long as a kernel.
_PRELUDE = """\
#include <algorithm>
#include <string>
#include <utility>
#include "gemm/config_key.h"
#include "sim/engine/world.h"
#include "sim/kernels/simulated_configs.h"
#include "sim/registry.h"
"""
_TIMEOUT_SECONDS = 600


def compiler() -> str | None:
    """Returns the host compiler, or None."""
    return shutil.which("g++")


def _compile(*arguments: object) -> None:
    command = [compiler(), *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[:4000]}")


@dataclasses.dataclass(frozen=True)
class Engine:
    """The simulator without kernels."""

    objects: tuple[Path, ...]
    prelude: Path  # header with a precompiled one beside it


def build_engine(folder: Path, *, threads: int = 2) -> Engine:
    """Compiles everything of the simulator but the kernels, into `folder`."""
    prelude = folder / "prelude.h"
    prelude.write_text(_PRELUDE)
    compiled = prelude.with_suffix(".h.gch")
    _compile(*_FLAGS, "-O1", *_INCLUDES, "-x", "c++-header", prelude, "-o", compiled)
    sources = [*_SIM.glob("*.cc"), *(_SIM / "engine").glob("*.cc"), *(_SIM / "driver").glob("*.cc")]
    sources += [_CSRC / "gemm" / "config_key.cc", _CSRC / "quantize" / "quantize_key.cc"]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        # The arithmetic is where the time goes. GCC crashes if it gets a prelude of another level.
        flags = ["-O2"] if source.stem == "mma_math" else ["-O1", "-include", prelude]
        _compile(*_FLAGS, *flags, *_INCLUDES, "-c", source, "-o", target)
        return target

    with ThreadPoolExecutor(threads) as pool:
        return Engine(tuple(pool.map(compile_one, sorted(sources))), prelude)


def _kernel_table(keys: Sequence[str]) -> str:
    """Returns a translation unit that registers the kernels `keys`."""
    entries = []
    for key in keys:
        literal = re.search(r"fp8gemm::\w+Config\{.*?\n  \}", core().kernel_source(key), re.DOTALL)
        make = "MakeSimQuantizer" if key in core().quantize_configs() else "MakeSimKernel"
        entries.append(f"    {make}<{literal[0]}>()")
    lines = ",\n".join(entries)
    return (
        '#include "sim/kernels/kernel_table.h"\n'
        '#include "sim/kernels/quantize_kernel.h"\n'
        "namespace fp8gemm::sim {\n"
        f"const SimKernel kKernels[] = {{\n{lines}}};\n"
        "const KernelTable kTable(kKernels);\n"
        "}  // namespace fp8gemm::sim\n"
    )


def build_library(
    folder: Path, engine: Engine, keys: Sequence[str], mutant: Mutant | None = None
) -> Path:
    """Links the engine with the kernels `keys`, mutated if asked; returns the library.

    `folder` is for this library alone.
    """
    overlay = folder / "overlay"
    overlay.mkdir(parents=True)
    if mutant is not None:
        target = overlay / mutant.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(mutant.source())
    table = folder / "kernel_table.cc"
    table.write_text(_kernel_table(keys))
    library = folder / "simulator.so"
    table_object = folder / "kernel_table.o"
    includes = [f"-I{overlay}", *_INCLUDES, "-include", engine.prelude]
    _compile(*_FLAGS, "-O1", *includes, "-c", table, "-o", table_object)
    _compile("-shared", table_object, *engine.objects, "-o", library)
    return library
