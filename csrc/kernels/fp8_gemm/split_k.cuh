// SPDX-License-Identifier: Apache-2.0
// Split K: the CTAs of a cluster have multiplied different K blocks of one tile; each finishes a
// part of its columns.
//
// Sums are pushed to the CTA that finishes them, where their bytes complete its barrier: only one
// trip between CTAs shows, and nobody waits for stores to be seen. They are added in the order of
// the CTAs, so that results do not depend on timing. A cluster computes one tile, after which its
// places are not used again.
#pragma once
#include <fp8_gemm/pipeline.cuh>
#include <ptx/cluster.cuh>
#include <ptx/warp.cuh>

namespace fp8gemm {

// sums = accum of all CTAs of the cluster, for the columns that this CTA stores. One warpgroup.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void sum_over_cluster(const Smem<kConfig>& smem, uint32_t consumer,
                                     const float (&accum)[kConfig.block_n / 2],
                                     float (&sums)[kConfig.stored_columns() / 2]) {
  constexpr uint32_t kColumns8 = kConfig.stored_columns() / 8;
  // Threads that have rows of the tile. A part of its sums comes to each from every CTA, and the
  // parts are as many as the columns it has itself.
  constexpr uint32_t kThreads = ceil_div(min(kConfig.block_m, kMmaM), 16u) * kWarpThreads;
  constexpr uint32_t kBytes = kThreads * kConfig.block_n / 2 * sizeof(float);
  const uint32_t rank = ptx::cluster_ctarank();
  const uint32_t thread = ptx::thread_idx() % kWarpgroupThreads;
  if (thread == 0) ptx::mbarrier_arrive_expect_tx(smem.summed(consumer), kBytes);
  if (thread < kThreads) {
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < kConfig.block_n / 2; i += 4) {
      const uint32_t target = i / 4 / kColumns8;
      const uint32_t place = smem.partials(consumer, rank, i / 4 % kColumns8, thread);
      ptx::st_async_v4_f32(place, smem.summed(consumer), target, accum[i], accum[i + 1],
                           accum[i + 2], accum[i + 3]);
    }
  }
  ptx::mbarrier_wait_parity_cluster(smem.summed(consumer), 0);
  FP8GEMM_UNROLL
  for (uint32_t source = 0; source < kConfig.split_k; ++source) {
    FP8GEMM_UNROLL
    for (uint32_t j = 0; j < kColumns8; ++j) {
      float part[4];
      ptx::ld_shared_v4_f32(smem.partials(consumer, source, j, thread), part);
      FP8GEMM_UNROLL
      for (uint32_t i = 0; i < 4; ++i) {
        sums[4 * j + i] = source == 0 ? part[i] : sums[4 * j + i] + part[i];
      }
    }
  }
}

}  // namespace fp8gemm
