// SPDX-License-Identifier: Apache-2.0
// Simulator twin of kernels/ptx/cluster.cuh.
#pragma once
#include <ptx/base.cuh>

namespace fp8gemm::ptx {

FP8GEMM_DEVICE uint32_t cluster_ctarank() { return sim::ClusterCtaRank(); }
FP8GEMM_DEVICE void barrier_cluster_arrive() { sim::ClusterArrive(); }
FP8GEMM_DEVICE void barrier_cluster_arrive_relaxed() { sim::ClusterArriveRelaxed(); }
FP8GEMM_DEVICE void barrier_cluster_wait() { sim::ClusterWait(); }
FP8GEMM_DEVICE void st_async_v4_f32(uint32_t addr, uint32_t bar, uint32_t cta_rank, float x,
                                    float y, float z, float w) {
  sim::StoreAsyncV4F32(addr, bar, cta_rank, x, y, z, w);
}
FP8GEMM_DEVICE void griddepcontrol_wait() { sim::GridDependencyWait(); }

// Only a scheduling hint, and the simulator runs one grid at a time.
FP8GEMM_DEVICE void griddepcontrol_launch_dependents() {}

}  // namespace fp8gemm::ptx
