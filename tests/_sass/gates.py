# SPDX-License-Identifier: Apache-2.0
"""Hard gates: what must hold of every kernel, whichever compiler made it."""

import re
from dataclasses import dataclass

from jax_fp8gemm._src.tools.sass.facts import KernelFacts, LoopFacts

_SM_REGISTERS = 65536
_WARPGROUP_THREADS = 128
# k32 instructions in one 128-wide block of K.
_MMA_PER_BLOCK_K = 4
# Blocks of K that one iteration of the main loop may hold: the compiler unrolls the smallest tiles.
_MAX_UNROLL = 2
# Share of neighbouring FFMA that must differ in their yield hint. A strict alternation gives 1; a
# scale that is selected in the middle of a tile interrupts it, at worst (width 112) down to 0.76.
_LEAST_YIELD_CHANGES = 0.75

# ptxas remarks "Potential Performance Loss": wgmma serialized, setmaxnreg ignored, waits injected.
_PERFORMANCE_LOSS = re.compile(r"\(C75\d\d\)[^\n]*")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Expected:
    """What a configuration implies for its code."""

    block_n: int
    row_slices: int  # 64-row wgmma blocks one consumer warpgroup runs per block of K
    num_consumers: int
    moves_registers: bool  # setmaxnreg gives the consumers what the producer lacks
    consumer_registers: int
    producer_registers: int
    a_type: str  # as in the mnemonic: E4M3 or E5M2
    b_type: str
    kernel: str  # name of the entry point
    scale_products: int  # FMUL of scales, per block of K
    scale_loads: int  # from shared memory, per block of K
    scale_loads_under_mma: int  # of them, how many at least must cost no time
    gpu_barriers: int  # MEMBAR of the whole GPU, outside of the loop

    @property
    def threads(self) -> int:
        """Threads of a CTA: the consumer warpgroups and the producer's."""
        return (self.num_consumers + 1) * _WARPGROUP_THREADS


def log_failures(log: str) -> list[str]:
    """Returns what the compiler's log says against a kernel; empty if nothing.

    The log must come from a compilation with `--ptxas-options=-v`.
    """
    failures = _PERFORMANCE_LOSS.findall(log)
    spills = _SPILLS.findall(log)
    if not spills:
        failures.append("the log has no spill counts: compiled without --ptxas-options=-v?")
    failures += [
        f"ptxas reports {frame} bytes stack, {stores} bytes spill stores, {loads} spill loads"
        for frame, stores, loads in spills
        if (frame, stores, loads) != ("0", "0", "0")
    ]
    return failures


def gate_failures(facts: KernelFacts, expected: Expected) -> list[str]:
    """Returns one sentence per gate that the kernel fails; empty if it passes."""
    failures = _resource_failures(facts, expected)
    if facts.loop is None:
        return [*failures, "no loop holds a tensor-core instruction"]
    return failures + _loop_failures(facts.loop, expected) + _yield_failures(facts.loop, expected)


def _resource_failures(facts: KernelFacts, expected: Expected) -> list[str]:
    pool = facts.registers * expected.threads
    rules = [
        (
            facts.kernel == expected.kernel,
            f"the entry point is {facts.kernel}, expected {expected.kernel}",
        ),
        (
            facts.local_memory == 0 and facts.frame_bytes == 0 and facts.stack_bytes == 0,
            f"local memory: {facts.local_memory} LDL/STL, frame {facts.frame_bytes} bytes, "
            f"stack {facts.stack_bytes} bytes",
        ),
        (pool <= _SM_REGISTERS, f"{facts.registers} registers x {expected.threads} threads"),
        (
            facts.gpu_barriers == expected.gpu_barriers,
            f"{facts.gpu_barriers} MEMBAR of the GPU, expected {expected.gpu_barriers}",
        ),
        *(_moved_register_rules if expected.moves_registers else _fixed_register_rules)(
            facts, expected
        ),
    ]
    return [message for holds, message in rules if not holds]


def _fixed_register_rules(facts: KernelFacts, _: Expected) -> list[tuple[bool, str]]:
    return [
        (
            not facts.raised_registers and not facts.lowered_registers,
            f"setmaxnreg: raised to {facts.raised_registers}, lowered to "
            f"{facts.lowered_registers}, expected none",
        ),
        (
            facts.highest_register < facts.registers,
            f"R{facts.highest_register} is used, threads have {facts.registers}",
        ),
    ]


def _moved_register_rules(facts: KernelFacts, expected: Expected) -> list[tuple[bool, str]]:
    consumer, producer = expected.consumer_registers, expected.producer_registers
    pool = facts.registers * expected.threads
    demand = _WARPGROUP_THREADS * (expected.num_consumers * consumer + producer)
    return [
        (
            facts.raised_registers == (consumer,) and facts.lowered_registers == (producer,),
            f"setmaxnreg: raised to {facts.raised_registers}, lowered to "
            f"{facts.lowered_registers}, expected {consumer} and {producer} once each",
        ),
        (demand <= pool, f"setmaxnreg asks for {demand} registers of the CTA's {pool}"),
        (
            facts.highest_register < consumer,
            f"R{facts.highest_register} is used, consumers have {consumer}",
        ),
        (
            facts.highest_after_lowering < producer,
            f"R{facts.highest_after_lowering} is used by the producer, which has {producer}",
        ),
    ]


def _loop_failures(loop: LoopFacts, expected: Expected) -> list[str]:
    unroll = _unroll(loop, expected)
    row_slices = expected.row_slices * unroll
    mma = _MMA_PER_BLOCK_K * row_slices
    ffma = expected.block_n // 2 * row_slices
    fmul = expected.scale_products * unroll
    loads = expected.scale_loads * unroll
    under = expected.scale_loads_under_mma * unroll
    shape = f"QGMMA.64x{expected.block_n}x32.F32.{expected.a_type}.{expected.b_type}"
    rules = [
        (loop.mma == mma, f"{loop.mma} tensor-core instructions in the main loop, expected {mma}"),
        (
            loop.mma_shapes == {shape},
            f"tensor-core instructions {sorted(loop.mma_shapes)}, expected {shape}",
        ),
        (loop.ffma == ffma, f"{loop.ffma} FFMA in the main loop, expected {ffma}"),
        (loop.fmul == fmul, f"{loop.fmul} FMUL in the main loop, expected {fmul}"),
        (loop.shared_loads == loads, f"{loop.shared_loads} LDS in the main loop, expected {loads}"),
        (
            loop.shared_loads_under_mma >= under,
            f"{loop.shared_loads_under_mma} LDS under the tensor core, expected {under} or more",
        ),
        (
            loop.groups == loop.waits == loop.fences == row_slices,
            f"wgmma groups: {loop.groups} committed, {loop.waits} waits, {loop.fences} fences, "
            f"expected {row_slices} each: serialized, or waits inserted by the compiler",
        ),
        (loop.local_memory == 0, f"{loop.local_memory} LDL/STL in the main loop"),
        (
            loop.memory_barriers == 0,
            f"{loop.memory_barriers} memory barriers in the main loop: a release to the cluster?",
        ),
        (loop.calls == 0, f"{loop.calls} calls in the main loop"),
        (loop.r2ur == 0, f"{loop.r2ur} R2UR in the main loop: wgmma descriptors are not uniform"),
    ]
    return [message for holds, message in rules if not holds]


def _unroll(loop: LoopFacts, expected: Expected) -> int:
    """Blocks of K in one iteration; 1 if the loop does not hold whole ones."""
    unroll, rest = divmod(loop.mma, _MMA_PER_BLOCK_K * expected.row_slices)
    return unroll if rest == 0 and 1 <= unroll <= _MAX_UNROLL else 1


def _yield_failures(loop: LoopFacts, expected: Expected) -> list[str]:
    """FFMA of neighbouring warps must be able to alternate.

    A promotion that never yields holds back the warp that would start the next wgmma. ptxas gives
    alternating hints by itself where the launch bounds say that a scheduler has three warps or
    more. With one consumer warpgroup it has one math warp and nothing to alternate with.
    """
    pairs = loop.ffma - 1
    if expected.num_consumers == 1 or loop.ffma_yield_changes >= _LEAST_YIELD_CHANGES * pairs:
        return []
    return [
        f"yield hints: {loop.ffma_yields} of {loop.ffma} FFMA yield, "
        f"{loop.ffma_yield_changes} of {pairs} neighbours alternate"
    ]
