// SPDX-License-Identifier: Apache-2.0
// Every kernel configuration the planner may choose, as one compile-time table: the planner walks
// it, the build instantiates the simulator's kernels from it, and the tests compile all of it.
#pragma once
#include <shared/smem_layout.h>

namespace fp8gemm {

struct TileShape {
  uint16_t block_m;
  uint16_t block_n;
  uint8_t num_consumers;
  uint8_t cluster_m;
  uint8_t cluster_n;
};

// Tiles for e4m3 x e4m3 -> bfloat16 without accumulator. Widths off the powers of two exist to fill
// the last wave of tiles; 176 and 208 to 240 would touch three scale blocks, 256 would spill.
inline constexpr TileShape kTileShapes[] = {
    // Tiles of few rows, for few tokens: one consumer, no cluster.
    {16, 16, 1, 1, 1}, {16, 32, 1, 1, 1}, {16, 64, 1, 1, 1}, {16, 128, 1, 1, 1},
    {32, 16, 1, 1, 1}, {32, 32, 1, 1, 1}, {32, 64, 1, 1, 1}, {32, 128, 1, 1, 1},
    {64, 16, 1, 1, 1}, {64, 32, 1, 1, 1}, {64, 48, 1, 1, 1}, {64, 64, 1, 1, 1},
    {64, 80, 1, 1, 1}, {64, 96, 1, 1, 1}, {64, 112, 1, 1, 1}, {64, 128, 1, 1, 1},
    {64, 160, 1, 1, 1}, {64, 192, 1, 1, 1},
    // Two consumers of 64 rows each.
    {128, 16, 2, 1, 1}, {128, 32, 2, 1, 1}, {128, 48, 2, 1, 1}, {128, 64, 2, 1, 1},
    {128, 80, 2, 1, 1}, {128, 96, 2, 1, 1}, {128, 112, 2, 1, 1}, {128, 128, 2, 1, 1},
    {128, 144, 2, 1, 1}, {128, 160, 2, 1, 1}, {128, 192, 2, 1, 1},
    {128, 64, 2, 2, 1}, {128, 96, 2, 2, 1}, {128, 112, 2, 2, 1}, {128, 128, 2, 2, 1},
    {128, 144, 2, 2, 1}, {128, 160, 2, 2, 1}, {128, 192, 2, 2, 1},
    {128, 96, 2, 1, 2}, {128, 112, 2, 1, 2}, {128, 128, 2, 1, 2},
    {128, 144, 2, 1, 2}, {128, 160, 2, 1, 2}, {128, 192, 2, 1, 2},
    // Three consumers of 64 rows each.
    {192, 96, 3, 1, 1}, {192, 128, 3, 1, 1}, {192, 128, 3, 2, 1}, {192, 128, 3, 1, 2},
    // Two consumers of two 64-row waves each.
    {256, 64, 2, 1, 1}, {256, 96, 2, 1, 1}, {256, 112, 2, 1, 1}, {256, 128, 2, 1, 1},
    {256, 96, 2, 1, 2}, {256, 112, 2, 1, 2}, {256, 128, 2, 1, 2}, {256, 128, 2, 2, 1},
};

// A smaller choice for every other combination of types, which fewer programs need.
inline constexpr TileShape kCommonTileShapes[] = {
    {16, 32, 1, 1, 1},  {16, 128, 1, 1, 1}, {64, 32, 1, 1, 1},  {64, 128, 1, 1, 1},
    {128, 64, 2, 1, 1}, {128, 128, 2, 1, 1}, {128, 128, 2, 2, 1}, {128, 160, 2, 2, 1},
    {256, 128, 2, 1, 2},
};

inline constexpr uint32_t kMinStages = 3;
inline constexpr uint32_t kMaxStages = 16;

// The deepest pipeline that fits in shared memory; less than kMinStages means the tile does not.
FP8GEMM_HOST_DEVICE constexpr uint32_t max_stages(GemmConfig config) {
  config.num_stages = kMaxStages;
  while (config.num_stages > 0 && make_smem_layout(config).bytes > kMaxSmemBytes) {
    --config.num_stages;
  }
  return config.num_stages;
}

// `types` gives the element types and flags; the tile fields are replaced.
FP8GEMM_HOST_DEVICE constexpr GemmConfig make_config(GemmConfig types, const TileShape& tile) {
  types.block_m = tile.block_m;
  types.block_n = tile.block_n;
  types.num_consumers = tile.num_consumers;
  types.cluster_m = tile.cluster_m;
  types.cluster_n = tile.cluster_n;
  types.num_stages = max_stages(types);
  return types;
}

FP8GEMM_HOST_DEVICE constexpr bool has_all_tile_shapes(const GemmConfig& types) {
  return types.a_type == Fp8Type::kE4M3 && types.b_type == Fp8Type::kE4M3 &&
         types.d_type == OutType::kBF16 && !types.accumulate;
}

// What a kernel relies on; checked for the table when it is compiled and for a user's choice when it
// is parsed. Nullptr when legal, else the rule that is broken.
FP8GEMM_HOST_DEVICE constexpr const char* broken_rule(const GemmConfig& config) {
  const uint32_t n = config.block_n;
  const uint32_t consumers = config.num_consumers;
  if (consumers < 1 || consumers > 3) return "num_consumers must be 1, 2 or 3";
  if (config.block_m % kMmaM != 0 && config.block_m != 16 && config.block_m != 32) {
    return "block_m must be 16, 32 or a multiple of 64";
  }
  if (config.block_m > 256 || config.consumer_rows() * consumers != max(config.block_m, kMmaM) ||
      config.waves() > 2) {
    return "block_m must be 64 or 128 rows for each consumer, and at most 256";
  }
  if (n < 16 || n > 192 || n % 16 != 0) return "block_n must be a multiple of 16 from 16 to 192";
  if (n > kScaleBlockN && gcd(n, kScaleBlockN) < n - kScaleBlockN) {
    return "block_n must not let a tile touch three scale blocks";
  }
  if (config.waves() * n / 2 + n / 2 + 32 > (config.moves_registers() ? config.consumer_registers()
                                                                      : 255u)) {
    return "accumulators and partial sums must fit in the registers of a thread";
  }
  const bool clustered = config.cluster_size() == 2;
  if (config.cluster_m < 1 || config.cluster_n < 1 || config.cluster_size() > 2) {
    return "a cluster must have one or two CTAs";
  }
  if (clustered && config.block_m < 128) return "a cluster must have block_m of 128 or more";
  if (config.num_stages < kMinStages || config.num_stages > kMaxStages) {
    return "num_stages must be from 3 to 16";
  }
  if (make_smem_layout(config).bytes > kMaxSmemBytes) return "shared memory must fit in 232448 bytes";
  return nullptr;
}

}  // namespace fp8gemm
