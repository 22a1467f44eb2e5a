// SPDX-License-Identifier: Apache-2.0
// Modelled time of one configuration on one problem.
#pragma once
#include "gemm/problem.h"

namespace fp8gemm {

/// What bounds a kernel, in SM clock cycles unless the name says otherwise.
struct CostEstimate {
  int64_t tiles = 0;              // output tiles, phantom tiles of odd clusters included
  int64_t tiles_per_cta = 0;      // of the busiest CTA
  int64_t k_blocks = 0;           // of one tile in one CTA
  double tensor_per_k_block = 0;  // tensor core
  double smem_per_k_block = 0;    // shared-memory port: wgmma reads and TMA writes
  double l2_per_k_block = 0;      // L2 to SM
  double serial_per_k_block = 0;  // one warpgroup's wgmma, wait and promotion, not overlapped
  double load_per_k_block = 0;    // latency of a load over the stages that hide it
  double k_block = 0;             // the largest of the five, and a little for L2
  double tile_overhead = 0;       // per tile: pipeline refill and what of the epilogue shows
  double compute = 0;             // of the busiest CTA
  double hbm_floor = 0;           // every byte once from device memory
  double cycles = 0;              // total
  double microseconds = 0;
};

/// Model of a Hopper GPU with `problem.num_sms` SMs; pure. The constants and where they come from
/// are in docs/tuning.md. No constant was measured by this project yet: trust the order, not the
/// microseconds.
CostEstimate EstimateCost(const GemmProblem& problem, const GemmConfig& config);

/// Clusters of `size` CTAs, one CTA per SM, that are resident at once on `num_sms` SMs. A cluster
/// lies within one GPC, so SMs are left over where a GPC has no multiple of `size`. On a GPU
/// cuOccupancyMaxActiveClusters answers instead (Kernel::Load).
int64_t ResidentClusters(int64_t num_sms, int64_t size);

}  // namespace fp8gemm
