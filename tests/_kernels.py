# SPDX-License-Identifier: Apache-2.0
"""Compiles kernels for the tests: the device sources, and a farm that works ahead of the asker."""

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from _nvrtc import Nvrtc, NvrtcError
from _sass import Instruction, KernelFacts, disassemble, kernel_facts, parse_cubin

CSRC = Path(__file__).parent.parent / "csrc"
ARCHITECTURE = "--gpu-architecture=sm_90a"
# Makes ptxas print its spill counts to the log.
VERBOSE = "--ptxas-options=-v"

# Kernels per run of nvdisasm; more would make the first test of a run wait longer.
_CHUNK = 12


@dataclass(frozen=True)
class CompiledKernel:
    """What one NVRTC made of one kernel."""

    facts: KernelFacts
    log: str


@dataclass(frozen=True)
class Job:
    """One kernel to compile with one NVRTC."""

    nvrtc: Nvrtc
    key: str

    def __str__(self) -> str:
        return f"{self.nvrtc.name}-{self.key}"


@functools.cache
def device_headers() -> Mapping[str, str]:
    """Returns include name to text of csrc/shared and csrc/kernels, read from the source tree."""
    roots = {CSRC / "shared": CSRC, CSRC / "kernels": CSRC / "kernels"}
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for folder, root in roots.items()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".h", ".cuh", ".inc")
    }


def compile_kernel(nvrtc: Nvrtc, source: str, options: Sequence[str]) -> CompiledKernel:
    """Compiles and disassembles one kernel against the headers of the source tree."""
    return compile_kernel_with_code(nvrtc, source, options)[0]


def compile_kernel_with_code(
    nvrtc: Nvrtc, source: str, options: Sequence[str]
) -> tuple[CompiledKernel, Sequence[Instruction]]:
    """Returns `compile_kernel`, and the instructions."""
    compiled = nvrtc.compile(source, [*options, VERBOSE], device_headers())
    cubin = parse_cubin(compiled.cubin)
    (code,) = disassemble([cubin.code])
    return CompiledKernel(kernel_facts(cubin, code), compiled.log), code


class KernelFarm:
    """Compiles the kernels of many tests in chunks, ahead of the test that asks.

    A chunk shares one start of nvdisasm. Asking for a kernel starts its chunk and the next few.
    """

    def __init__(self, jobs: Sequence[Job], core, *, threads: int = 2) -> None:
        """Takes all jobs in the order of asking, the extension module, and how many threads work.

        With one thread nothing is compiled ahead: right where several processes share the jobs.
        """
        self._core = core
        self._ahead = threads if threads > 1 else 0
        self._headers = core.embedded_headers()
        self._options = [*core.nvrtc_options(), VERBOSE]
        self._chunks = [jobs[i : i + _CHUNK] for i in range(0, len(jobs), _CHUNK)]
        self._chunk_of = {job: i for i, chunk in enumerate(self._chunks) for job in chunk}
        self._futures: dict[int, Future[dict[Job, CompiledKernel | NvrtcError]]] = {}
        self._pool = ThreadPoolExecutor(threads)

    def get(self, job: Job) -> CompiledKernel:
        """Returns a compiled kernel; raises NvrtcError if it does not compile."""
        chunk = self._chunk_of[job]
        for index in range(chunk, min(chunk + self._ahead + 1, len(self._chunks))):
            if index not in self._futures:
                self._futures[index] = self._pool.submit(self._run, self._chunks[index])
        result = self._futures[chunk].result()[job]
        if isinstance(result, NvrtcError):
            raise result
        return result

    def close(self) -> None:
        """Drops what has not started and waits for the rest."""
        self._pool.shutdown(cancel_futures=True)

    def _run(self, chunk: Sequence[Job]) -> dict[Job, CompiledKernel | NvrtcError]:
        compiled, results = {}, {}
        for job in chunk:
            source = self._core.kernel_source(job.key)
            try:
                compiled[job] = job.nvrtc.compile(source, self._options, self._headers)
            except NvrtcError as error:
                results[job] = error
        cubins = {job: parse_cubin(c.cubin) for job, c in compiled.items()}
        codes = disassemble([cubin.code for cubin in cubins.values()])
        for (job, cubin), code in zip(cubins.items(), codes, strict=True):
            results[job] = CompiledKernel(kernel_facts(cubin, code), compiled[job].log)
        return results
