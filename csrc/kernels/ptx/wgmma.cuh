// SPDX-License-Identifier: Apache-2.0
// Ordering of asynchronous warpgroup matrix multiplications. One instruction per function, named
// after it; all 128 threads of the warpgroup execute each together.
// PTX ISA: "Asynchronous Warpgroup Level Matrix Instructions", sm_90a.
#pragma once
#include <ptx/base.cuh>

namespace fp8gemm::ptx {

// Orders earlier register and shared-memory accesses before the next wgmma. Needed before the
// first one and whenever accumulators were touched in between.
FP8GEMM_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

FP8GEMM_DEVICE void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most `kPending` groups are in flight. Accumulators of finished groups are
// readable.
template <int kPending>
FP8GEMM_DEVICE void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Not an instruction: keeps the compiler from moving accesses to `regs` across this point, since it
// cannot see that a wgmma in flight owns them.
template <int kCount>
FP8GEMM_DEVICE void fence_registers(float (&regs)[kCount]) {
  FP8GEMM_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(regs[i])::"memory");
}

}  // namespace fp8gemm::ptx
