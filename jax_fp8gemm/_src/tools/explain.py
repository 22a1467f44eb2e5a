# SPDX-License-Identifier: Apache-2.0
"""Why a problem gets its kernel: the model's bounds side by side, and facts about the code."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jax_fp8gemm._src.native import extension
from jax_fp8gemm._src.native.gemm_problem import Problem
from jax_fp8gemm._src.tools.sass.cubin import parse_cubin
from jax_fp8gemm._src.tools.sass.disassembly import disassemble, find_nvdisasm
from jax_fp8gemm._src.tools.sass.facts import KernelFacts, kernel_facts

Candidate = Mapping[str, Any]

# Cycles per K block that a configuration is bound by, and what they are in words.
BOUNDS = {
    "tensor_cycles_per_k_block": "tensor core",
    "smem_cycles_per_k_block": "shared-memory port",
    "l2_cycles_per_k_block": "L2",
    "serial_cycles_per_k_block": "one warpgroup's chain",
    "load_cycles_per_k_block": "latency of a load",
}
_MMA_PER_K_BLOCK = 4
# Cycles of one row slice's K block on the tensor core, per column: 64 * 128 / 4096.
_CYCLES_PER_COLUMN = 2
_LABEL_WIDTH = 34


def binding(candidate: Candidate) -> str:
    """Returns what bounds a K block, in words."""
    return BOUNDS[max(BOUNDS, key=candidate.__getitem__)]


def l2_bytes_per_k_block(candidate: Candidate) -> int:
    """Returns the bytes one CTA fetches for a K block: of what a cluster shares its part."""
    rows = candidate["block_m"] // candidate["cluster_n"]
    columns = candidate["block_n"] // candidate["cluster_m"]
    return (rows + columns) * candidate["block_k"]


def l2_bytes(candidate: Candidate, problem: Problem) -> int:
    """Returns the bytes that all tiles move between L2 and the SMs."""
    # With split K as many CTAs work on a tile, each on its part of K.
    k_blocks = candidate["k_blocks"] * candidate["split_k"]
    per_tile = k_blocks * l2_bytes_per_k_block(candidate)
    d_bytes = np.dtype(problem.d_dtype).itemsize * (2 if problem.accumulate else 1)
    tiles = candidate["tiles"] // candidate["split_k"]
    return tiles * (per_tile + candidate["block_m"] * candidate["block_n"] * d_bytes)


def stages_needed(candidate: Candidate) -> int:
    """Returns how many stages hide the latency of a load under the K blocks before it."""
    latency = candidate["load_cycles_per_k_block"] * candidate["num_stages"]
    work = max(candidate[name] for name in BOUNDS if name != "load_cycles_per_k_block")
    return -int(-latency // work)


def lines(problem: Problem, ranked: Sequence[Candidate], top: int) -> list[str]:
    """Returns the explanation of a choice, without the machine code.

    Args:
        problem: What is computed.
        ranked: What `ranking.rank` returns for it.
        top: How many candidates to show.
    """
    best = ranked[0]
    shown = ranked[:top]
    text = [
        f"problem {problem} on {problem.num_sms} SMs: {problem.flops:.3g} operations,"
        f" {problem.least_bytes / 1e6:.4g} MB at least",
        f"chosen  {best['config']}",
        f"why     {_why(best)}",
        f"        {_bound_of(best)}",
        f"{len(ranked)} candidates, best first:",
    ]
    text += [f"  [{i}] {c['config']}" for i, c in enumerate(shown, 1)]
    header = "".join(f"{f'[{i}]':>10}" for i in range(1, len(shown) + 1))
    text.append(f"{'':<{_LABEL_WIDTH}}{header}")
    for label, value in _rows(problem, ranked[0]):
        cells = "".join(f"{value(c):>10}" for c in shown)
        text.append(f"{label:<{_LABEL_WIDTH}}{cells}")
    return text


def _why(best: Candidate) -> str:
    if "measured_microseconds" in best:
        took = best["measured_microseconds"]
        return f"it measured fastest: {took:.2f} us in the tuned table of this GPU model"
    return f"least modelled time: {best['microseconds']:.2f} us (a model, not a measurement)"


def _bound_of(best: Candidate) -> str:
    compute, memory = best["compute_cycles"], best["hbm_floor_cycles"]
    if memory > compute:
        return f"device memory is the bound: computing takes {compute / memory:.0%} of its time"
    return (
        f"computing is the bound, in it the {binding(best)}; device memory needs"
        f" {memory / compute:.0%} of its time"
    )


def _rows(problem: Problem, best: Candidate) -> list[tuple[str, Callable[[Candidate], str]]]:
    def number(name: str) -> Callable[[Candidate], str]:
        return lambda c: f"{c[name]:.0f}"

    def bound(name: str) -> Callable[[Candidate], str]:
        return lambda c: f"{'*' if BOUNDS[name] == binding(c) else ''}{c[name]:.0f}"

    rows = [(f"  {words}", bound(name)) for name, words in BOUNDS.items()]
    times = [("measured us", lambda c: _optional(c.get("measured_microseconds")))]
    return [
        ("cycles per K block (* the bound)", number("cycles_per_k_block")),
        *rows,
        ("K blocks of a tile", number("k_blocks")),
        ("cycles per tile beside them", number("tile_overhead_cycles")),
        ("tiles", number("tiles")),
        ("tiles of the busiest CTA", number("tiles_per_cta")),
        ("cycles of the busiest CTA", number("compute_cycles")),
        ("cycles device memory needs", number("hbm_floor_cycles")),
        ("L2 bytes per CTA and K block", lambda c: str(l2_bytes_per_k_block(c))),
        (
            "L2 bytes / least bytes",
            lambda c: f"{l2_bytes(c, problem) / problem.least_bytes:.2f}",
        ),
        (
            "stages (that hide a load)",
            lambda c: f"{c['num_stages']} ({stages_needed(c)})",
        ),
        ("modelled us", lambda c: f"{c['microseconds']:.2f}"),
        ("modelled TFLOPS", lambda c: f"{problem.flops / c['microseconds'] / 1e6:.0f}"),
        *(times if "measured_microseconds" in best else []),
    ]


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# ---- Machine code --------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def code_facts(key: str) -> KernelFacts:
    """Returns the facts about a configuration's machine code.

    Raises:
        RuntimeError: NVRTC or nvdisasm is missing, or the kernel does not compile.
    """
    if find_nvdisasm() is None:
        raise RuntimeError("nvdisasm is missing: pip install nvidia-cuda-nvdisasm")
    cubin = parse_cubin(extension.core().kernel_image(key))
    (code,) = disassemble([cubin.code])
    return kernel_facts(cubin, code)


def code_lines(key: str) -> list[str]:
    """Returns the facts about a configuration's main loop in words, or what is missing for them."""
    try:
        facts, (major, minor) = code_facts(key), extension.core().nvrtc_version()
    except RuntimeError as error:
        return [f"machine code: not available: {str(error).splitlines()[0]}"]
    config, loop = extension.core().describe_config(key), facts.loop
    if loop is None:
        return ["machine code: not available: no loop around a tensor-core instruction"]
    k_blocks = loop.mma // (_MMA_PER_K_BLOCK * config["row_slices"])
    tensor = _CYCLES_PER_COLUMN * config["block_n"] * config["row_slices"] * k_blocks
    per_consumer = config["num_consumers"] * tensor
    return [
        f"machine code of [1], NVRTC {major}.{minor}: {facts.instructions} instructions,"
        f" R{facts.highest_register} the highest register,"
        f" {facts.local_memory + facts.frame_bytes} spills",
        f"main loop ({k_blocks} K block): {loop.length} instructions, of them {loop.mma}"
        f" {', '.join(sorted(loop.mma_shapes))}, {loop.ffma} FFMA",
        f"  issue {loop.stall_cycles} cycles a warp, while the tensor core takes {tensor} a"
        f" warpgroup, {per_consumer} in all",
        f"  {loop.ffma_yields} FFMA yield; {loop.ffma_under_mma} run under the warpgroup's own"
        " wgmma",
        f"  {loop.shared_loads} loads from shared memory, {loop.shared_loads_under_mma} of them"
        " under wgmma",
    ]
