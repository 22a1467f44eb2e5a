// SPDX-License-Identifier: Apache-2.0
// Running sums over the lanes of a warp.
#pragma once
#include <ptx/warp.cuh>
#include <shared/gemm_config.h>

namespace fp8gemm {

// Inclusive sum over the lanes of a warp, saturating at `limit`; values must not exceed `limit`.
FP8GEMM_DEVICE uint32_t warp_prefix_sum(uint32_t value, uint32_t limit) {
  const uint32_t lane = ptx::lane_idx();
  FP8GEMM_UNROLL
  for (uint32_t delta = 1; delta < kWarpThreads; delta *= 2) {
    const uint32_t below = ptx::shfl_sync_up(value, delta);
    if (lane >= delta) value = min(value + below, limit);
  }
  return value;
}

}  // namespace fp8gemm
