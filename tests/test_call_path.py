# SPDX-License-Identifier: Apache-2.0
"""How far it is from gemm to the launch: docs/architecture.md and csrc/README.md, and the code."""

import re
import sys
from pathlib import Path

import cases
import jax
import jax.ffi
import pytest
from _source import ROOT, cpp_code, includes

import jax_fp8gemm as fp8
from jax_fp8gemm._src.transforms import apply, operation

PACKAGE = Path(fp8.__file__).parent
CSRC = ROOT / "csrc"
MAX_PYTHON_CALLS, MAX_PYTHON_FILES = 8, 6
MAX_FILES = 16
MAX_BESIDE = 20
MAX_KERNEL_LINES = 290
MAX_DENSE_SCHEDULER_LINES = 80
# What the files of the path include and a reader looks up but does not walk through.
BESIDE = {
    "driver/device_limits": "limits of a device",
    "driver/driver_types": "types of the CUDA driver",
    "driver/error": "exceptions",
    "driver/fork_mutex": "locks that a forked child finds free",
    "driver/interrupts": "Ctrl-C",
    "ffi/call_state": "what instantiate made for a call, of any version of XLA's runtime",
    "ffi/handlers": "declarations for the bindings",
    "gemm/config_key": "configurations as text",
    "gemm/sim_kernels": "which candidates the simulator has",
    "jit/build_identity": "the build of an NVRTC",
    "jit/build_lock": "one build among processes",
    "jit/disk_store": "the cache on disk",
    "jit/fnv1a": "hashes",
    "jit/trusted_directory": "who may have written to it",
    "jit/type_names": "what types are called",
    "shared/fast_divisor": "division by what the host knows",
    "shared/gemm_config": "what a kernel is specialized on",
    "shared/gemm_params": "the kernel's parameter",
    "shared/smem_layout": "the kernel's shared memory",
    "shared/types": "integer types",
}
KERNEL = ("sm90_fp8_gemm", "producer", "consumer", "promotion")


def listed(page: str) -> list[str]:
    """Returns the files that a page lists between its marks."""
    text = (ROOT / page).read_text()
    part = text[text.index("<!-- path:begin -->") : text.index("<!-- path:end -->")]
    return re.findall(r"^\d+\. `([^`]+)` \w", part, re.MULTILINE)


def path() -> list[str]:
    """Returns the files behind the custom call, relative to csrc/."""
    return listed("csrc/README.md")


def pair(name: str) -> str:
    return name.rpartition(".")[0]


def included_pairs(of: str) -> set[str]:
    """Returns what a header and its source file include of csrc/, without suffixes."""
    files = [file for suffix in (".h", ".cc") if (file := CSRC / (of + suffix)).exists()]
    names = {name for file in files for name in includes(file.read_text())}
    return {pair(name) for name in names if (CSRC / name).exists()} - {of}


def code_lines(name: str) -> int:
    text = cpp_code((CSRC / "kernels/fp8_gemm" / f"{name}.cuh").read_text())
    return sum(bool(line.strip()) for line in text.splitlines())


def test_path_is_short_and_exists():
    assert path()[0] == "ffi/gemm_handlers.cc"
    assert len(path()) == len(set(path())) <= MAX_FILES
    assert [name for name in path() if not (CSRC / name).exists()] == []
    # Where there is a source file, that is what one reads.
    assert [n for n in path() if n.endswith(".h") and (CSRC / f"{pair(n)}.cc").exists()] == []


def test_each_file_of_the_path_is_included_by_one_before_it():
    """Or by a file beside the path that one before it includes."""
    reached = {"ffi/gemm_handlers"}
    for name in path():
        assert pair(name) in reached, name
        included = included_pairs(pair(name))
        reached |= included.union(*map(included_pairs, included & BESIDE.keys()))


def test_nothing_is_left_out_of_the_path():
    seen, new = set(), {"ffi/gemm_handlers"}
    while new:
        seen |= new
        new = set().union(*map(included_pairs, new)) - seen
    assert seen == set(map(pair, path())) | set(BESIDE)
    assert len(BESIDE) <= MAX_BESIDE


def test_core_of_the_kernel_is_small():
    assert sum(map(code_lines, KERNEL)) <= MAX_KERNEL_LINES
    assert code_lines("tile_scheduler") <= MAX_DENSE_SCHEDULER_LINES


# ---- Python ------------------------------------------------------------------------------------


@pytest.fixture
def frames(monkeypatch, extension):
    """Returns the functions of the package that make a product part of a program, and lower it.

    Those on the stack where the operation is bound, where what one device computes is, and where
    the custom call is made; each once.
    """
    found = []

    def recorded(real):
        def recording(*args, **kwargs):
            stack, frame = [], sys._getframe(1)
            while frame:
                path = Path(frame.f_code.co_filename)
                if path.is_relative_to(PACKAGE):
                    stack.append((path.relative_to(PACKAGE).as_posix(), frame.f_code.co_name))
                frame = frame.f_back
            found.extend(each for each in reversed(stack) if each not in found)
            return real(*args, **kwargs)

        return recording

    for primitive in (apply._operation_p, operation._local_p):
        monkeypatch.setattr(primitive, "bind", recorded(primitive.bind))
    monkeypatch.setattr(jax.ffi, "ffi_call", recorded(jax.ffi.ffi_call))
    jax.clear_caches()  # what is traced already makes no calls
    return found


def test_the_python_path_is_short_and_listed(frames):
    lhs, rhs = cases.gemm_operands(cases.GemmCase("path", 16, 128, 128))
    frames.clear()  # the operands were quantized
    jax.jit(fp8.gemm).trace(lhs, rhs).lower(lowering_platforms=("cuda",))
    assert frames[0] == ("_src/ops/gemm.py", "gemm")
    assert frames[-1] == ("_src/native/calls.py", "matmul")
    assert len(frames) <= MAX_PYTHON_CALLS, frames
    files = list(dict.fromkeys(file for file, _ in frames))
    assert len(files) <= MAX_PYTHON_FILES
    assert listed("docs/architecture.md") == [f"jax_fp8gemm/{file}" for file in files]
