// SPDX-License-Identifier: Apache-2.0
// Constants are cited in docs/tuning.md, "Cost model".
#include "gemm/cost_model.h"

#include <algorithm>

namespace fp8gemm {
namespace {

constexpr double kClockGhz = 1.755;
// Dense fp8 rate of one SM: 4096 multiply-adds.
constexpr double kMacsPerCycle = 4096;
constexpr double kSmemBytesPerCycle = 128;
constexpr double kL2BytesPerCyclePerSm = 64;
constexpr double kL2BytesPerCycle = 6150;
constexpr double kHbmBytesPerCycle = 3350 / kClockGhz;
// Achievable shares of kHbmBytesPerCycle and of kMacsPerCycle.
constexpr double kHbmEfficiency = 0.9;
constexpr double kTensorEfficiency = 0.95;
// Latency of a K block's dependent chain besides wgmma and FFMA: barrier wait, scale loads,
// descriptor setup, wgmma start and drain.
constexpr double kChainLatency = 130;
// A stage in flight is written about this long after its slot was freed.
constexpr double kLoadLatency = 1000;
constexpr double kLaunchCycles = 5000;
constexpr double kL2Pressure = 0.03;
constexpr double kOverlapLoss = 0.05;
// Shared memory to global memory through TMA, per SM.
constexpr double kStoreBytesPerCycle = 32;
constexpr double kTileLatency = 900;
// Partial sums to another CTA of the cluster and back into registers.
constexpr double kSplitLatency = 1500;

// With scales of both operands per 1x128 each accumulator has a product of scales of its own. They
// are formed while the tensor core works as far as registers last; the others show, per K block and
// thread, as counted in machine code (tests/_sass/golden, NVRTC 13.5).
double ExposedScaleProducts(const GemmConfig& config) {
  if (config.scaling != Scaling::k1D1D) return 0;
  switch (config.block_n) {
    case 96: return 49;  // two row slices
    case 112: return 51;
    case 144: return 30;
    case 160: return 75;
    default: return 0;
  }
}

double KBlockCycles(const GemmConfig& config, double active_sms, CostEstimate& estimate) {
  const double rows = config.num_consumers * config.consumer_rows();
  const double mma_rows = rows / kMmaM;
  const double n = config.block_n;
  estimate.tensor_per_k_block = rows * n * kBlockK / kMacsPerCycle / kTensorEfficiency;
  const double loaded = (config.block_m + n) * kBlockK;
  const double read = mma_rows * (kMmaM + n) * kBlockK;
  estimate.smem_per_k_block = (loaded + read) / kSmemBytesPerCycle;
  const double l2_rate = std::min(kL2BytesPerCyclePerSm, kL2BytesPerCycle / active_sms);
  estimate.l2_per_k_block =
      (double(config.block_m) / config.cluster_n + n / config.cluster_m) * kBlockK / l2_rate;
  // One FFMA per accumulator and about one other instruction for three of them.
  const double slice_cycles = kMmaM * n * kBlockK / kMacsPerCycle + n / 2 * 1.33;
  estimate.serial_per_k_block =
      config.row_slices() * slice_cycles + ExposedScaleProducts(config) + kChainLatency;
  estimate.load_per_k_block = kLoadLatency / config.num_stages;
  // Of tiles with the same bound the one that asks less of L2 leaves more for everyone.
  return std::max({estimate.tensor_per_k_block, estimate.smem_per_k_block, estimate.l2_per_k_block,
                   estimate.serial_per_k_block, estimate.load_per_k_block}) +
         kL2Pressure * estimate.l2_per_k_block;
}

// What the heuristics assume of sizes that only the device knows: groups of equal size.
struct Workload {
  int64_t matrices;  // output matrices of `rows` rows each
  int64_t rows;
  int64_t k_blocks;  // of each
  double a_bytes;
  double b_bytes;
  double d_elements;
};

Workload ExpectedWorkload(const GemmProblem& problem) {
  const int64_t groups = problem.num_groups;
  const int64_t k_blocks = ceil_div<int64_t>(problem.k, kBlockK);
  Workload work{.matrices = 1,
                .rows = problem.m,
                .k_blocks = k_blocks,
                .a_bytes = double(problem.m) * problem.k,
                .b_bytes = double(problem.b_rows()) * problem.k,
                .d_elements = double(problem.m) * problem.n};
  if (problem.kind == GemmKind::kRagged) {
    work.matrices = groups;
    work.rows = ceil_div(problem.m, groups);
  } else if (problem.kind == GemmKind::kMasked) {
    work.matrices = groups;
    work.rows = problem.expected_m > 0 ? std::min(problem.expected_m, problem.m) : problem.m;
    work.a_bytes = double(groups) * work.rows * problem.k;
    work.d_elements = double(groups) * (problem.zero_padding ? problem.m : work.rows) * problem.n;
  } else if (problem.kind == GemmKind::kKGrouped) {
    work.matrices = groups;
    work.k_blocks = ceil_div(k_blocks, groups);
    work.d_elements *= groups;
  }
  return work;
}

}  // namespace

int64_t ResidentClusters(int64_t num_sms, int64_t size) {
  // H100 SXM, H200, H800 and GH200. Their GPCs have 16 or 18 SMs, few chips all the same ones: an
  // H100 held 15 clusters of 8 (accel-sim/gpu-app-collection#87, NVIDIA/cutlass#1921) and 31 of 4.
  if (num_sms == 132 && size == 8) return 15;
  if (num_sms == 132 && size == 4) return 31;
  return std::max<int64_t>(1, num_sms / size);
}

CostEstimate EstimateCost(const GemmProblem& problem, const GemmConfig& config) {
  CostEstimate estimate;
  const Workload work = ExpectedWorkload(problem);
  const int64_t cluster = config.cluster_size();
  const int64_t cluster_tiles = work.matrices *
                                ceil_div(work.rows, int64_t{config.block_m} * config.cluster_m) *
                                ceil_div(problem.n, int64_t{config.block_n} * config.cluster_n);
  const int64_t slots = ResidentClusters(problem.num_sms, cluster);
  estimate.tiles = cluster_tiles * cluster;
  estimate.tiles_per_cta = ceil_div(cluster_tiles, slots);
  const double active_sms = double(std::min(cluster_tiles, slots) * cluster);
  estimate.k_block = KBlockCycles(config, active_sms, estimate);

  const double d_bytes = element_bytes(config.d_type) * (config.accumulate ? 2.0 : 1.0);
  const double epilogue = config.block_m * config.block_n * d_bytes / kStoreBytesPerCycle;
  // The epilogue of one consumer runs under the main loop of another, so that of n consumers that
  // have rows an n-th of the overhead shows.
  const int64_t rows = std::clamp<int64_t>(work.rows, 1, config.block_m);
  const double exposed = 1.0 / ceil_div<int64_t>(rows, config.consumer_rows());
  estimate.tile_overhead = (kTileLatency + epilogue / config.split_k) * exposed +
                           (config.split_k > 1 ? kSplitLatency : 0);

  // The scales of `a` add 4 bytes to 128 of its elements.
  const double bytes =
      work.a_bytes * (1 + 4.0 / kBlockK) + work.b_bytes + work.d_elements * d_bytes;
  estimate.hbm_floor = bytes / (kHbmBytesPerCycle * kHbmEfficiency);
  estimate.k_blocks = ceil_div<int64_t>(work.k_blocks, config.split_k);
  estimate.compute =
      estimate.tiles_per_cta * (estimate.k_blocks * estimate.k_block + estimate.tile_overhead);
  // The shorter of computing and memory traffic hides under the longer, but not perfectly. So among
  // tiles that are bound by memory, the one that computes faster wins.
  estimate.cycles = kLaunchCycles + std::max(estimate.compute, estimate.hbm_floor) +
                    kOverlapLoss * std::min(estimate.compute, estimate.hbm_floor);
  estimate.microseconds = estimate.cycles / (kClockGhz * 1e3);
  return estimate;
}

}  // namespace fp8gemm
