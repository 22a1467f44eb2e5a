// SPDX-License-Identifier: Apache-2.0
// Simulator twin of kernels/ptx/wgmma.cuh.
#pragma once
#include <ptx/base.cuh>

namespace fp8gemm::ptx {

FP8GEMM_DEVICE void wgmma_fence() { sim::WgmmaFence(); }
FP8GEMM_DEVICE void wgmma_commit_group() { sim::WgmmaCommitGroup(); }
template <int kPending>
FP8GEMM_DEVICE void wgmma_wait_group() {
  sim::WgmmaWaitGroup(kPending);
}

// The engine holds the address of `regs` from wgmma to wait, so no compiler moves accesses across.
template <int kCount>
FP8GEMM_DEVICE void fence_registers(float (&)[kCount]) {}

}  // namespace fp8gemm::ptx
