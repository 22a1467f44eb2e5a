# SPDX-License-Identifier: Apache-2.0
"""Facts about a warp-specialized GEMM kernel: registers, local memory, and its main loop.

The main loop is the shortest backward branch whose range holds a tensor-core instruction.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from jax_fp8gemm._src.tools.sass.cubin import Cubin
from jax_fp8gemm._src.tools.sass.disassembly import Instruction

_LOCAL_MEMORY = ("LDL", "STL")
_TENSOR_CORE = ("QGMMA", "HGMMA")
_MEMORY_BARRIERS = ("MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL")


@dataclass(frozen=True)
class LoopFacts:
    """Counts over the instructions of the main loop, in address order."""

    start: int
    end: int  # address of the backward branch
    length: int  # instructions
    mma: int
    mma_shapes: frozenset[str]  # opcodes, e.g. QGMMA.64x128x32.F32.E4M3.E4M3
    ffma: int
    fmul: int  # products of scales
    shared_loads: int
    groups: int  # wgmma groups committed: an MMA that signals a scoreboard
    waits: int  # WARPGROUP.DEPBAR
    fences: int  # WARPGROUP.ARRIVE
    local_memory: int
    calls: int
    r2ur: int  # moves of per-thread values into uniform registers
    memory_barriers: int  # waits for memory of the CTA or the GPU, and invalidations of L1
    stall_cycles: int  # cycles one warp needs to issue one iteration, if nothing is waited for
    exposed_cycles: int  # of them, those in which no MMA of this warp runs
    ffma_yields: int
    ffma_yield_changes: int  # neighbouring FFMA whose yield hints differ; ffma - 1 if alternating
    ffma_reuse: int
    ffma_under_mma: int  # FFMA issued while a committed group may still run
    shared_loads_under_mma: int  # between the first MMA of a group and the wait for it


@dataclass(frozen=True)
class KernelFacts:
    """Facts about a whole kernel."""

    kernel: str
    image_bytes: int
    instructions: int
    registers: int  # per thread, at launch
    frame_bytes: int
    stack_bytes: int
    local_memory: int  # LDL and STL instructions
    gpu_barriers: int  # MEMBAR of the whole GPU
    raised_registers: tuple[int, ...]  # operands of setmaxnreg.inc
    lowered_registers: tuple[int, ...]  # operands of setmaxnreg.dec
    highest_register: int
    highest_after_lowering: int  # in what can run after setmaxnreg.dec; -1 if there is none
    loop: LoopFacts | None


def kernel_facts(cubin: Cubin, code: Sequence[Instruction]) -> KernelFacts:
    """Collects the facts about one kernel from its image and its instructions."""
    raises = [i for i in code if i.opcode.startswith("USETMAXREG.TRY_ALLOC")]
    lowers = [i for i in code if i.opcode.startswith("USETMAXREG.DEALLOC")]
    lowered_code = _reachable(code, lowers)
    return KernelFacts(
        kernel=cubin.kernel,
        image_bytes=cubin.image_bytes,
        instructions=len(code),
        registers=cubin.registers,
        frame_bytes=cubin.frame_bytes,
        stack_bytes=cubin.stack_bytes,
        local_memory=_count(code, *_LOCAL_MEMORY),
        gpu_barriers=sum(i.name == "MEMBAR" and i.opcode.endswith(".GPU") for i in code),
        raised_registers=tuple(_last_number(i) for i in raises),
        lowered_registers=tuple(_last_number(i) for i in lowers),
        highest_register=max(i.highest_register for i in code),
        highest_after_lowering=max((i.highest_register for i in lowered_code), default=-1),
        loop=_loop_facts(_main_loop(code)),
    )


def _main_loop(code: Sequence[Instruction]) -> list[Instruction]:
    """Instructions of the shortest loop around a tensor-core instruction; empty if none."""
    loops = []
    for branch in code:
        target = branch.branch_target
        if target is not None and target <= branch.address:
            body = [i for i in code if target <= i.address <= branch.address]
            if _count(body, *_TENSOR_CORE):
                loops.append(body)
    return min(loops, key=len, default=[])


def _loop_facts(loop: Sequence[Instruction]) -> LoopFacts | None:
    if not loop:
        return None
    mma = [i for i in loop if i.name in _TENSOR_CORE]
    ffma = [i for i in loop if i.name == "FFMA"]
    yields = [i.control.yield_hint for i in ffma]
    return LoopFacts(
        start=loop[0].address,
        end=loop[-1].address,
        length=len(loop),
        mma=len(mma),
        mma_shapes=frozenset(i.opcode for i in mma),
        ffma=len(ffma),
        fmul=_count(loop, "FMUL"),
        shared_loads=_count(loop, "LDS"),
        groups=sum("gsb" in i.operands for i in mma),
        waits=sum(i.opcode.startswith("WARPGROUP.DEPBAR") for i in loop),
        fences=sum(i.opcode.startswith("WARPGROUP.ARRIVE") for i in loop),
        local_memory=_count(loop, *_LOCAL_MEMORY),
        calls=_count(loop, "CALL"),
        r2ur=_count(loop, "R2UR"),
        memory_barriers=_count(loop, *_MEMORY_BARRIERS),
        stall_cycles=sum(_issue_cycles(i) for i in loop),
        exposed_cycles=sum(_issue_cycles(i) for i, running in _mma_running(loop) if not running),
        ffma_yields=sum(yields),
        ffma_yield_changes=sum(a != b for a, b in pairwise(yields)),
        ffma_reuse=sum(i.control.reuse != 0 for i in ffma),
        ffma_under_mma=_ffma_under_mma(loop),
        shared_loads_under_mma=_shared_loads_under_mma(loop),
    )


def _ffma_under_mma(loop: Sequence[Instruction]) -> int:
    """FFMA between an MMA and the wait that leaves no group in flight."""
    in_flight = 0
    under = 0
    for instruction in loop:
        if instruction.name in _TENSOR_CORE:
            in_flight += "gsb" in instruction.operands
        elif instruction.opcode.startswith("WARPGROUP.DEPBAR"):
            in_flight = min(in_flight, _last_number(instruction))
        elif instruction.name == "FFMA":
            under += in_flight > 0
    return under


def _shared_loads_under_mma(loop: Sequence[Instruction]) -> int:
    """Loads that the tensor core hides: an MMA runs from its issue to the wait."""
    return sum(running and i.name == "LDS" for i, running in _mma_running(loop))


def _mma_running(loop: Sequence[Instruction]) -> Iterator[tuple[Instruction, bool]]:
    """Each instruction, and whether an MMA runs when it has issued; the wait itself ends it."""
    running = False
    for instruction in loop:
        if instruction.name in _TENSOR_CORE:
            running = True
        elif instruction.opcode.startswith("WARPGROUP.DEPBAR"):
            running = False
        yield instruction, running


def _issue_cycles(instruction: Instruction) -> int:
    return max(1, instruction.control.stall)


def _reachable(code: Sequence[Instruction], starts: Sequence[Instruction]) -> list[Instruction]:
    """Instructions that can run after any of `starts`; starts included."""
    by_address = {i.address: i for i in code}
    following = {a.address: b for a, b in pairwise(code)}
    seen = set()
    pending = [i.address for i in starts]
    while pending:
        address = pending.pop()
        if address in seen or address not in by_address:
            continue
        seen.add(address)
        instruction = by_address[address]
        if instruction.branch_target is not None:
            pending.append(instruction.branch_target)
        if instruction.falls_through and address in following:
            pending.append(following[address].address)
    return [by_address[a] for a in sorted(seen)]


def _count(code: Sequence[Instruction], *names: str) -> int:
    return sum(i.name in names for i in code)


def _last_number(instruction: Instruction) -> int:
    return int(re.findall(r"0x[0-9a-f]+|\b\d+\b", instruction.operands)[-1], 0)
