// SPDX-License-Identifier: Apache-2.0
// Thread-block clusters and dependent launches. One instruction per function, named after it.
// PTX ISA: "barrier.cluster", "mapa", "st.async", "griddepcontrol", special registers, sm_90.
#pragma once
#include <ptx/base.cuh>

namespace fp8gemm::ptx {

// Rank of this CTA within its cluster.
FP8GEMM_DEVICE uint32_t cluster_ctarank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Arrives at the barrier of all threads of the cluster; releases this thread's earlier writes.
FP8GEMM_DEVICE void barrier_cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

// Arrives there without a release: of this thread's earlier writes, those who wait see only what
// fence_mbarrier_init_release_cluster has fenced. The compiler puts no memory barriers before it.
FP8GEMM_DEVICE void barrier_cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

FP8GEMM_DEVICE void barrier_cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Starts to store four floats at `addr` in CTA `cta_rank` of the cluster, which must not exit
// before. Once they are there, 16 bytes complete on its mbarrier at `bar`, which releases them to
// the cluster. 16-byte aligned.
FP8GEMM_DEVICE void st_async_v4_f32(uint32_t addr, uint32_t bar, uint32_t cta_rank, float x,
                                    float y, float z, float w) {
  asm volatile(
      "{\n.reg .b32 remote, remote_bar;\n"
      "mapa.shared::cluster.u32 remote, %0, %2;\n"
      "mapa.shared::cluster.u32 remote_bar, %1, %2;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [remote], {%3, %4, %5, %6}, "
      "[remote_bar];\n}" ::"r"(addr),
      "r"(bar), "r"(cta_rank), "f"(x), "f"(y), "f"(z), "f"(w)
      : "memory");
}

// Waits until the grids this launch depends on have finished and their writes are visible. Before
// the first access to global memory that another kernel may have written or may still read.
FP8GEMM_DEVICE void griddepcontrol_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets a dependent launch start early. A scheduling hint: it makes nothing visible.
FP8GEMM_DEVICE void griddepcontrol_launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace fp8gemm::ptx
