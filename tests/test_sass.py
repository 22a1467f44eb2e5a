# SPDX-License-Identifier: Apache-2.0
"""The SASS gates themselves: a sound kernel passes all, a planted fault fails the right one."""

import dataclasses
import functools

import pytest
from _kernels import ARCHITECTURE, CSRC, CompiledKernel, compile_kernel, device_headers
from _nvrtc import Nvrtc, NvrtcError, find_all
from _sass import (
    Expected,
    disassemble,
    find_nvdisasm,
    gate_failures,
    log_failures,
    parse_cubin,
    ratchet_failures,
)
from _sass.ratchets import measure

from jax_fp8gemm._src.tools.sass.disassembly import NO_BARRIER

pytestmark = [
    pytest.mark.skipif(not find_all(), reason="no NVRTC wheel is installed"),
    pytest.mark.skipif(find_nvdisasm() is None, reason="nvidia-cuda-nvdisasm is not installed"),
]

SPECIMEN = (CSRC.parent / "tests/specimens/warp_specialized.cu").read_text()
OPTIONS = [ARCHITECTURE, "--std=c++20"]
SOUND = Expected(
    block_n=128,
    row_slices=1,
    num_consumers=2,
    moves_registers=True,
    consumer_registers=232,
    producer_registers=40,
    a_type="E4M3",
    b_type="E4M3",
    kernel="warp_specialized",
    scale_products=0,
    scale_loads=0,
    scale_loads_under_mma=0,
    gpu_barriers=0,
)

# Planted fault (macros of the specimen, separated by spaces): a part of the failure it must cause.
FAULTS = {
    "NO_LAUNCH_BOUNDS": "setmaxnreg: raised to ()",
    "NO_SETMAXNREG": "setmaxnreg: raised to ()",
    "READ_BEFORE_WAIT": "wgmma groups: 1 committed, 2 waits",
    "TOUCH_BETWEEN": "wgmma groups: 5 committed, 5 waits",
    "CONDITIONAL_MMA": "wgmma groups: 5 committed",
    "ROLLED_K": "1 tensor-core instructions in the main loop, expected 4",
    "DIVERGENT_DESCRIPTOR": "R2UR in the main loop",
    "OUTLINED_CALL": "1 calls in the main loop",
    "CLUSTER_RELEASE": "memory barriers in the main loop",
    "EXTRA_FFMA": "128 FFMA in the main loop, expected 64",
    "HEAVY_PRODUCER": "local memory: ",
    "BLOCK_N=256": "LDL/STL in the main loop",
}
# Faults that the compiler's log must report as well.
LOGGED = {
    "NO_LAUNCH_BOUNDS": "C7508",
    "READ_BEFORE_WAIT": "C7517",
    "HEAVY_PRODUCER": "bytes spill stores",
    "BLOCK_N=256": "bytes spill stores",
}
# A wrong expectation shows that the gate reads the number: (field, value, part of the failure).
WRONG_EXPECTATIONS = [
    ("consumer_registers", 96, "is used, consumers have 96"),
    ("producer_registers", 4, "is used by the producer, which has 4"),
    ("consumer_registers", 248, "setmaxnreg asks for 68608 registers"),
    ("num_consumers", 3, "168 registers x 512 threads"),
    ("moves_registers", False, "expected none"),
    ("row_slices", 2, "expected 2 each"),
    ("block_n", 64, "64 FFMA in the main loop, expected 32"),
    ("kernel", "another", "the entry point is warp_specialized"),
    ("scale_products", 64, "0 FMUL in the main loop, expected 64"),
    ("scale_loads", 3, "0 LDS in the main loop, expected 3"),
    ("scale_loads_under_mma", 16, "0 LDS under the tensor core, expected 16"),
    ("gpu_barriers", 1, "0 MEMBAR of the GPU, expected 1"),
    ("a_type", "E5M2", "expected QGMMA.64x128x32.F32.E5M2.E4M3"),
]

every_nvrtc = pytest.mark.parametrize("nvrtc", find_all(), ids=lambda n: n.name)


def _defines(macros: str) -> dict[str, str]:
    pairs = (macro.partition("=")[::2] for macro in macros.split())
    return {"BLOCK_N": "128", "WAVES": "1", **{name: value or "1" for name, value in pairs}}


@functools.cache
def _specimen(nvrtc: Nvrtc, macros: str = "") -> CompiledKernel:
    flags = [f"-D{name}={value}" for name, value in _defines(macros).items()]
    return compile_kernel(nvrtc, SPECIMEN, OPTIONS + flags)


def _expected(macros: str) -> Expected:
    defines = _defines(macros)
    return dataclasses.replace(
        SOUND, block_n=int(defines["BLOCK_N"]), row_slices=int(defines["WAVES"])
    )


@pytest.mark.sampled(2)
@every_nvrtc
@pytest.mark.parametrize("macros", ["", "WAVES=2", "BLOCK_N=64 WAVES=2", "BLOCK_N=192"])
def test_sound_kernel_passes(nvrtc, macros):
    kernel = _specimen(nvrtc, macros)
    assert log_failures(kernel.log) == []
    assert gate_failures(kernel.facts, _expected(macros)) == []


@pytest.mark.sampled(6)
@every_nvrtc
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_fails_its_gate(nvrtc, fault):
    failures = gate_failures(_specimen(nvrtc, fault).facts, _expected(fault))
    assert any(FAULTS[fault] in failure for failure in failures), failures


@pytest.mark.sampled(2)
@every_nvrtc
@pytest.mark.parametrize("fault", LOGGED)
def test_compiler_reports_fault(nvrtc, fault):
    failures = log_failures(_specimen(nvrtc, fault).log)
    assert any(LOGGED[fault] in failure for failure in failures), failures


def test_log_without_spill_counts_fails():
    assert log_failures("") != []


@every_nvrtc
def test_yield_hints_of_promotion_alternate(nvrtc):
    """The hints are a strict Y-Y-; where ptxas drops them the gate fails."""
    loop = _specimen(nvrtc).facts.loop
    assert (loop.ffma_yields, loop.ffma_yield_changes) == (32, 63)

    unbounded = _specimen(nvrtc, "NO_LAUNCH_BOUNDS").facts
    assert unbounded.loop.ffma_yields == 0
    assert any("yield hints: 0 of 64" in f for f in gate_failures(unbounded, SOUND))


@pytest.mark.parametrize(("field", "value", "part"), WRONG_EXPECTATIONS)
def test_wrong_expectation_fails(field, value, part):
    expected = dataclasses.replace(SOUND, **{field: value})
    failures = gate_failures(_specimen(find_all()[0]).facts, expected)
    assert any(part in failure for failure in failures), failures


def test_ratchet_allows_five_percent():
    facts = _specimen(find_all()[0]).facts
    accepted = measure(facts)
    assert ratchet_failures(facts, accepted) == []
    for name, value in accepted.items():
        assert ratchet_failures(facts, {**accepted, name: value + 1}) == []
        tightened = {**accepted, name: int(value / 1.06)}
        assert [f.split()[0] for f in ratchet_failures(facts, tightened)] == [name]


@every_nvrtc
def test_control_fields_agree_with_disassembly(nvrtc):
    """Reuse flags match what nvdisasm prints; loads signal a barrier and FFMA do not."""
    flags = ["-DBLOCK_N=128", "-DWAVES=1"]
    cubin = parse_cubin(nvrtc.compile(SPECIMEN, OPTIONS + flags, device_headers()).cubin)
    (code,) = disassemble([cubin.code])
    names = {instruction.name for instruction in code}
    assert names >= {"LDG", "FFMA"} and any(i.control.reuse for i in code)
    for instruction in code:
        control = instruction.control
        assert bool(control.reuse) == (".reuse" in instruction.operands), instruction
        if instruction.name == "LDG":
            assert control.write_barrier != NO_BARRIER, instruction
        if instruction.name == "FFMA":
            assert control.write_barrier == control.read_barrier == NO_BARRIER, instruction
            assert control.stall > 0, instruction


def test_disassembling_together_changes_nothing():
    nvrtc = find_all()[0]
    flags = (["-DBLOCK_N=128", "-DWAVES=1"], ["-DBLOCK_N=64", "-DWAVES=2"])
    codes = [
        parse_cubin(nvrtc.compile(SPECIMEN, OPTIONS + f, device_headers()).cubin).code
        for f in flags
    ]
    together = disassemble(codes)
    assert together == [disassemble([code])[0] for code in codes]


def test_compile_error_carries_the_log():
    with pytest.raises(NvrtcError, match="undeclared_name"):
        find_all()[0].compile("int x = undeclared_name;", OPTIONS)
