# SPDX-License-Identifier: Apache-2.0
"""Compiles kernels for the tests: the device sources, and a farm that works ahead of the asker."""

import collections
import functools
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from _nvrtc import Nvrtc, NvrtcError
from _sass import Cubin, Instruction, KernelFacts, disassemble, kernel_facts, parse_cubin
from _source import ROOT
from _tiers import as_code

CSRC = ROOT / "csrc"
# What judges the code of a kernel.
JUDGES = ("tests/_sass", "jax_fp8gemm/_src/tools/sass")
ARCHITECTURE = "--gpu-architecture=sm_90a"
# Makes ptxas print its spill counts to the log.
VERBOSE = "--ptxas-options=-v"

# Kernels per run of nvdisasm; more would make the first test of a run wait longer.
_CHUNK = 12


@dataclass(frozen=True)
class CompiledKernel:
    """What one NVRTC made of one kernel."""

    facts: KernelFacts
    opcodes: Mapping[str, int]  # how many instructions have each
    log: str

    @classmethod
    def of(cls, cubin: Cubin, code: Sequence[Instruction], log: str) -> "CompiledKernel":
        """Collects what the tests look at, which is much smaller than the instructions."""
        opcodes = collections.Counter(instruction.opcode for instruction in code)
        return cls(kernel_facts(cubin, code), opcodes, log)


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
    compiled = nvrtc.compile(source, [*options, VERBOSE], device_headers())
    cubin = parse_cubin(compiled.cubin)
    (code,) = disassemble([cubin.code])
    return CompiledKernel.of(cubin, code, compiled.log)


def families(core) -> dict[str, list[str]]:
    """Returns the keys of all kernels that the extension `core` can compile, by family."""
    keys = collections.defaultdict(list)
    for key in [*core.candidate_configs(), *core.quantize_configs()]:
        keys[key.partition(".")[0]].append(key)
    return dict(keys)


def source_digests(core) -> dict[str, str]:
    """Returns for each family the digest of what decides whether its kernels pass.

    That is their sources as code, without comments, the options, and what judges them.
    """
    judges = [path for folder in JUDGES for path in sorted((ROOT / folder).glob("*.py"))]
    common = [*core.nvrtc_options(), *(as_code(path.name, path.read_text()) for path in judges)]
    digests = {}
    for family, keys in families(core).items():
        headers = {name: text for key in keys for name, text in core.kernel_headers(key).items()}
        parts = [*common, *(core.kernel_source(key) for key in sorted(keys))]
        parts += [f"{name}\n{as_code(name, text)}" for name, text in sorted(headers.items())]
        digests[family] = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return digests


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
            results[job] = CompiledKernel.of(cubin, code, compiled[job].log)
        return results
