// SPDX-License-Identifier: Apache-2.0
// Micro-kernels of clusters of two: arrivals and stores that reach the other CTA.
#pragma once
#include "micro_kernels.cuh"

namespace fp8gemm::conformance {

FP8GEMM_DEVICE void sync_both() {
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
}

// The ranks take turns: each waits for an arrival from the other on its own barrier and writes the
// round, rank 0 starting.
FP8GEMM_DEVICE void mbarrier_remote(const Params& params) {
  const uint32_t bar = ptx::dynamic_smem() + kBarrierOffset;
  const uint32_t rank = ptx::cluster_ctarank();
  const uint32_t num_rounds = params.args[0];
  publish(bar, 1);
  sync_both();
  if (ptx::thread_idx() == 0) {
    for (uint32_t round = 0; round < num_rounds; ++round) {
      if (rank == 0) ptx::mbarrier_arrive_cluster(bar, 1);
      ptx::mbarrier_wait_parity(bar, round % 2);
      params.out[rank * num_rounds + round] = round + 1;
      if (rank == 1) ptx::mbarrier_arrive_cluster(bar, 0);
    }
  }
  sync_both();
}

// Each thread stores four words of `in` into the other CTA, which announces their bytes before or
// after they have come, as `args[0]` says, and dumps them.
FP8GEMM_DEVICE void st_async(const Params& params) {
  const uint32_t smem = ptx::dynamic_smem();
  const uint32_t bar = smem + kBarrierOffset;
  const uint32_t rank = ptx::cluster_ctarank();
  const uint32_t thread = ptx::thread_idx();
  const bool announces_first = params.args[0] != 0;
  publish(bar, 1);
  if (thread == 0 && announces_first) ptx::mbarrier_arrive_expect_tx(bar, kThreads * 16);
  sync_both();
  const uint32_t* words = params.in + (rank * kThreads + thread) * 4;
  ptx::st_async_v4_f32(smem + 16 * thread, bar, rank ^ 1, ptx::uint_as_float(words[0]),
                       ptx::uint_as_float(words[1]), ptx::uint_as_float(words[2]),
                       ptx::uint_as_float(words[3]));
  if (thread == 0 && !announces_first) ptx::mbarrier_arrive_expect_tx(bar, kThreads * 16);
  ptx::mbarrier_wait_parity_cluster(bar, 0);
  dump(params.out + rank * kThreads * 4, smem, kThreads * 4);
  sync_both();
}

}  // namespace fp8gemm::conformance
