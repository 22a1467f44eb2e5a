// SPDX-License-Identifier: Apache-2.0
// Barriers that threads meet at, by name: of the CTA or cluster, and of each consumer warpgroup.
#pragma once
#include <ptx/cluster.cuh>
#include <ptx/warp.cuh>
#include <shared/gemm_config.h>

namespace fp8gemm {

// Named barriers of a CTA. 0 is for all threads, 1 + i for consumer warpgroup i.
inline constexpr uint32_t kCtaBarrier = 0;
inline constexpr uint32_t kFirstConsumerBarrier = 1;

// Meets the other threads of consumer warpgroup `consumer`. The aligned barrier needs converged
// warps, and lanes may come from a branch that only some of them took.
FP8GEMM_DEVICE void sync_consumer(uint32_t consumer) {
  ptx::bar_warp_sync();
  ptx::barrier_sync(kFirstConsumerBarrier + consumer, kWarpgroupThreads);
}

// All threads of the CTA or cluster, whose lanes may come from a branch that one of them took: the
// aligned barriers need converged warps. Only a release shows a cluster more than fenced mbarriers.
template <GemmConfig kConfig, bool kReleases = true>
FP8GEMM_DEVICE void sync_cluster() {
  ptx::bar_warp_sync();
  if constexpr (kConfig.cluster_size() > 1) {
    if constexpr (kReleases) ptx::barrier_cluster_arrive();
    if constexpr (!kReleases) ptx::barrier_cluster_arrive_relaxed();
    ptx::barrier_cluster_wait();
  } else {
    ptx::barrier_sync(kCtaBarrier, kConfig.threads());
  }
}

}  // namespace fp8gemm
