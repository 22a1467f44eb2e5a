// SPDX-License-Identifier: Apache-2.0
// Thread-block clusters and dependent launches. One instruction per function, named after it.
// PTX ISA: "barrier.cluster", "griddepcontrol", special registers, sm_90.
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

FP8GEMM_DEVICE void barrier_cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Waits until the grids this launch depends on have finished and their writes are visible. Before
// the first access to global memory that another kernel may have written or may still read.
FP8GEMM_DEVICE void griddepcontrol_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets a dependent launch start early. A scheduling hint: it makes nothing visible.
FP8GEMM_DEVICE void griddepcontrol_launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace fp8gemm::ptx
