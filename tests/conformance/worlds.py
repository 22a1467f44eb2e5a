# SPDX-License-Identifier: Apache-2.0
"""Builds the micro-kernels for both worlds: a simulator library with g++, a cubin with NVRTC."""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mma_cases
import other_cases
import tma_cases
from catalogue import HEADERS, device_source, simulator_source
from problems import Case

TESTS = Path(__file__).resolve().parents[1]
CSRC = TESTS.parent / "csrc"
if str(TESTS) not in sys.path:  # for the update command; pytest has it already
    sys.path.insert(0, str(TESTS))

from _kernels import ARCHITECTURE, VERBOSE, device_headers  # noqa: E402
from _nvrtc import Compiled, Nvrtc, find_all  # noqa: E402

NVRTC_OPTIONS = [ARCHITECTURE, "--std=c++20", VERBOSE]
_GPP_FLAGS = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
_GPP_FLAGS += ["-Wno-unknown-pragmas"]


@functools.cache
def all_cases() -> dict[str, Case]:
    """Returns every case by name."""
    cases = tma_cases.cases() + mma_cases.cases() + other_cases.cases()
    by_name = {case.name: case for case in cases}
    assert len(by_name) == len(cases), "two cases have the same name"
    return by_name


def compile_for_gpu(nvrtc: Nvrtc | None = None) -> Compiled:
    """Compiles all micro-kernels to one cubin, or takes what the environment names.

    A rehearsal names one, because NVRTC itself asks libcuda, for more than the stand-in has.

    Args:
        nvrtc: Which NVRTC; the newest that is installed by default.
    """
    if cubin := os.environ.get("FP8GEMM_MICRO_KERNELS"):
        return Compiled(Path(cubin).read_bytes(), "")
    nvrtc = nvrtc or find_all()[0]
    headers = {**device_headers(), **{path.name: path.read_text() for path in HEADERS}}
    return nvrtc.compile(device_source(), NVRTC_OPTIONS, headers)


def _simulator_sources() -> list[Path]:
    folders = (CSRC / "sim", CSRC / "sim/engine")
    return sorted(path for folder in folders for path in folder.glob("*.cc"))


def _digest(source: str) -> str:
    inputs = [p for p in sorted(CSRC.rglob("*")) if p.suffix in (".h", ".cc", ".cuh", ".inc")]
    headers = b"".join(path.read_bytes() for path in HEADERS)
    digest = hashlib.sha256(source.encode() + headers + " ".join(_GPP_FLAGS).encode())
    for path in inputs:
        if not path.is_relative_to(CSRC / "sim/kernels"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build_simulator(folder: Path) -> Path:
    """Compiles the simulator with all micro-kernels; reuses the library of the same sources.

    Args:
        folder: Where the library is kept.
    """
    source = simulator_source()
    library = folder / f"simulator-{_digest(source)}.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side want the same library
        if not library.exists():
            _compile_simulator(source, library)
    return library


def _compile_simulator(source: str, library: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("g++ is needed to build the simulator")
    objects = library.parent / "objects"
    objects.mkdir(exist_ok=True)
    generated = objects / "micro_kernels.cc"
    generated.write_text(source)
    includes = [CSRC / "sim/device", CSRC / "kernels", CSRC, HEADERS[0].parent]
    flags = [*_GPP_FLAGS, *(f"-I{path}" for path in includes)]

    def compile_one(path: Path) -> Path:
        target = objects / f"{path.stem}.o"
        _run(compiler, *flags, "-c", str(path), "-o", str(target))
        return target

    with ThreadPoolExecutor(2) as pool:
        compiled = list(pool.map(compile_one, [generated, *_simulator_sources()]))
    temporary = library.with_suffix(".tmp")
    _run(compiler, "-shared", *map(str, compiled), "-o", str(temporary))
    temporary.rename(library)


def build_stand_in(simulator: Path, folder: Path) -> None:
    """Compiles a libcuda.so.1 over the simulator into `folder`.

    Args:
        simulator: What `build_simulator` returned.
        folder: Belongs on the library path of the process that shall use it.
    """
    source = Path(__file__).with_name("stand_in_driver.cc")
    flags = [*_GPP_FLAGS, f"-I{CSRC}", "-shared", str(source), str(simulator)]
    target = folder / "libcuda.so.1"
    _run("g++", *flags, f"-Wl,-rpath,{simulator.parent}", "-o", str(target))


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
