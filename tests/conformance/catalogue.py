# SPDX-License-Identifier: Apache-2.0
"""The micro-kernels: name, C++ expression and launch shape; and the two sources made of them."""

import dataclasses
from pathlib import Path

HEADERS = tuple(
    Path(__file__).with_name(name) for name in ("micro_kernels.cuh", "cluster_kernels.cuh")
)
MMA_WIDTHS = tuple(range(16, 257, 16))
TYPES = ("E4M3", "E5M2")
OUTPUT_TYPES = {"bf16": "kBF16", "f16": "kF16", "f32": "kF32"}
# Output tile (columns, type): every swizzle span, and none, with every type that can have it.
EPILOGUES = (
    (128, "bf16"),
    (96, "bf16"),
    (32, "bf16"),
    (16, "bf16"),
    (144, "bf16"),
    (64, "f16"),
    (16, "f16"),
    (48, "f16"),
    (32, "f32"),
    (16, "f32"),
    (112, "f32"),
)


@dataclasses.dataclass(frozen=True)
class MicroKernel:
    """One `extern "C"` kernel."""

    name: str
    call: str  # in namespace fp8gemm::conformance, without its argument
    threads: int = 128
    cluster: int = 1
    # Barriers behind 64 KiB of data.
    smem_bytes: int = 64 * 1024 + 64


def mma_name(n: int, a: str, b: str, steps: int) -> str:
    """Returns the name of a wgmma micro-kernel."""
    return f"wgmma_n{n}_{a.lower()}_{b.lower()}_k{steps}"


def _mma(n: int, a: str, b: str, steps: int) -> MicroKernel:
    call = f"wgmma<{n}, Fp8Type::k{a}, Fp8Type::k{b}, {steps}>"
    return MicroKernel(mma_name(n, a, b, steps), call)


def _kernels() -> list[MicroKernel]:
    kernels = [
        MicroKernel("tma_load", "tma_load"),
        MicroKernel("tma_store", "tma_store"),
        MicroKernel("tma_multicast", "tma_multicast", cluster=2),
        MicroKernel("stmatrix_x4", "stmatrix_x4"),
        MicroKernel("narrowing", "narrowing"),
        MicroKernel("widening", "widening"),
        MicroKernel("fp8_conversions", "fp8_conversions"),
        MicroKernel("approximations", "approximations"),
        MicroKernel("mbarrier_phases", "mbarrier_phases"),
        MicroKernel("mbarrier_remote", "mbarrier_remote", cluster=2),
        MicroKernel("st_async", "st_async", cluster=2),
        MicroKernel("named_barriers", "named_barriers", threads=256),
        MicroKernel("special_registers", "special_registers", cluster=2),
        MicroKernel("shared_vectors", "shared_vectors"),
        MicroKernel("register_budgets", "register_budgets", threads=384),
        MicroKernel("dependent_launch", "dependent_launch"),
    ]
    kernels += [_mma(n, "E4M3", "E4M3", 4) for n in MMA_WIDTHS]
    kernels += [_mma(32, a, b, 1) for a in TYPES for b in TYPES]
    kernels += [
        MicroKernel(f"epilogue_n{n}_{d}", f"epilogue<{n}, OutType::{OUTPUT_TYPES[d]}>")
        for n, d in EPILOGUES
    ]
    return kernels


KERNELS = {kernel.name: kernel for kernel in _kernels()}


def device_source() -> str:
    """Returns the program for NVRTC: all micro-kernels."""
    lines = [f"#include <{HEADERS[-1].name}>", "using namespace fp8gemm;", ""]
    for kernel in KERNELS.values():
        lines += [
            f'extern "C" __global__ void __launch_bounds__({kernel.threads}, 1)',
            f"{kernel.name}(const __grid_constant__ conformance::Params params) {{",
            f"  conformance::{kernel.call}(params);",
            "}",
        ]
    return "\n".join(lines) + "\n"


def simulator_source() -> str:
    """Returns a translation unit that registers all micro-kernels with the simulator."""
    lines = [
        f"#include <{HEADERS[-1].name}>",
        '#include "sim/registry.h"',
        "using namespace fp8gemm;",
        "using conformance::Params;",
        "namespace {",
        "template <void (*kKernel)(const Params&)>",
        "void Entry(const void* params) { kKernel(*static_cast<const Params*>(params)); }",
        "const sim::SimKernel kKernels[] = {",
    ]
    for kernel in KERNELS.values():
        registers = 65536 // kernel.threads // 8 * 8
        lines.append(
            f'    {{"{kernel.name}", &Entry<conformance::{kernel.call}>, sizeof(Params),'
            f" {kernel.threads}, {kernel.cluster}, {kernel.smem_bytes}, {min(registers, 255)},"
            " nullptr},"
        )
    lines += ["};", "const sim::KernelTable kTable(kKernels);", "}  // namespace"]
    return "\n".join(lines) + "\n"
