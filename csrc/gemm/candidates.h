// SPDX-License-Identifier: Apache-2.0
// Every kernel configuration that the heuristics may choose, as one compile-time table: they walk
// it, the build instantiates the simulator's kernels from it, and the tests compile all of it.
//
// A configuration called `untiled` is one whose tile is still to be chosen: only its kind, scaling,
// element types and flags are read.
#pragma once
#include <span>
#include <vector>

#include "gemm/kinds.h"
#include "shared/smem_layout.h"

namespace fp8gemm {

struct TileShape {
  uint16_t block_m;
  uint16_t block_n;
  uint8_t num_consumers;
  uint8_t cluster_m;
  uint8_t cluster_n;
  uint8_t split_k = 1;
};

// clang-format off: several tiles on a line

// Tiles for e4m3 x e4m3 -> bfloat16 without accumulator. Widths off the powers of two exist to fill
// the last wave of tiles; 176 and 208 to 240 would touch three scale blocks, 256 would spill.
inline constexpr TileShape kDenseTileShapes[] = {
    // Tiles of few rows, for few tokens: one consumer, no cluster.
    {16, 16, 1, 1, 1}, {16, 32, 1, 1, 1}, {16, 64, 1, 1, 1}, {16, 128, 1, 1, 1},
    {32, 16, 1, 1, 1}, {32, 32, 1, 1, 1}, {32, 64, 1, 1, 1}, {32, 128, 1, 1, 1},
    {64, 16, 1, 1, 1}, {64, 32, 1, 1, 1}, {64, 48, 1, 1, 1}, {64, 64, 1, 1, 1},
    {64, 80, 1, 1, 1}, {64, 96, 1, 1, 1}, {64, 112, 1, 1, 1}, {64, 128, 1, 1, 1},
    {64, 160, 1, 1, 1}, {64, 192, 1, 1, 1},
    // The same with K split among the CTAs of a cluster, for few columns and long K.
    {16, 64, 1, 1, 1, 4}, {16, 128, 1, 1, 1, 4}, {16, 128, 1, 1, 1, 8}, {32, 128, 1, 1, 1, 4},
    {64, 64, 1, 1, 1, 2}, {64, 64, 1, 1, 1, 4}, {64, 128, 1, 1, 1, 2}, {64, 128, 1, 1, 1, 4},
    {64, 128, 1, 1, 1, 8}, {128, 64, 2, 1, 1, 2}, {128, 64, 2, 1, 1, 4}, {128, 128, 2, 1, 1, 2},
    {128, 128, 2, 1, 1, 4},
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
    // Two consumers of two 64-row row slices each.
    {256, 64, 2, 1, 1}, {256, 96, 2, 1, 1}, {256, 112, 2, 1, 1}, {256, 128, 2, 1, 1},
    {256, 96, 2, 1, 2}, {256, 112, 2, 1, 2}, {256, 128, 2, 1, 2}, {256, 128, 2, 2, 1},
};

// For all other combinations of element types, which fewer programs need.
inline constexpr TileShape kRareTypesDenseTileShapes[] = {
    {16, 32, 1, 1, 1},  {16, 128, 1, 1, 1}, {64, 32, 1, 1, 1},  {64, 128, 1, 1, 1},
    {128, 64, 2, 1, 1}, {128, 128, 2, 1, 1}, {128, 128, 2, 2, 1}, {128, 160, 2, 2, 1},
    {256, 128, 2, 1, 2},
};

// Groups of any size: clusters along M pair tiles of one group, clusters along N always fit.
inline constexpr TileShape kRaggedTileShapes[] = {
    {16, 64, 1, 1, 1},  {16, 128, 1, 1, 1},  {32, 128, 1, 1, 1},  {64, 64, 1, 1, 1},
    {64, 128, 1, 1, 1}, {64, 192, 1, 1, 1},  {128, 96, 2, 1, 1},  {128, 128, 2, 1, 1},
    {128, 160, 2, 1, 1}, {128, 192, 2, 1, 1}, {128, 128, 2, 2, 1}, {128, 160, 2, 2, 1},
    {128, 192, 2, 2, 1}, {128, 192, 2, 1, 2}, {256, 128, 2, 1, 1}, {256, 128, 2, 1, 2},
};

// The group of a tile is that of its first row, so tiles may not pass kContiguousAlignment, and
// tiles that are neighbours along M may belong to different groups.
inline constexpr TileShape kContiguousTileShapes[] = {
    {64, 128, 1, 1, 1},  {128, 128, 2, 1, 1}, {128, 160, 2, 1, 1}, {128, 192, 2, 1, 1},
    {128, 128, 2, 1, 2}, {128, 160, 2, 1, 2}, {128, 192, 2, 1, 2},
};

inline constexpr TileShape kMaskedTileShapes[] = {
    {16, 64, 1, 1, 1},   {16, 128, 1, 1, 1},  {32, 128, 1, 1, 1},  {64, 64, 1, 1, 1},
    {64, 128, 1, 1, 1},  {64, 192, 1, 1, 1},  {128, 128, 2, 1, 1}, {128, 192, 2, 1, 1},
    {128, 128, 2, 2, 1}, {128, 192, 2, 2, 1}, {128, 192, 2, 1, 2}, {256, 128, 2, 1, 2},
};

// Scales per 1x128 of both operands cost registers, so tiles are smaller.
inline constexpr TileShape k1D1DTileShapes[] = {
    {64, 64, 1, 1, 1},   {64, 128, 1, 1, 1},  {128, 64, 2, 1, 1},  {128, 128, 2, 1, 1},
    {128, 128, 2, 2, 1}, {128, 144, 2, 2, 1}, {128, 160, 2, 2, 1}, {192, 112, 3, 1, 1},
    {192, 112, 3, 1, 2}, {256, 96, 2, 1, 1},  {256, 96, 2, 1, 2},
};

// For the kinds above, with all other combinations of element types.
inline constexpr TileShape kRareTypesGroupedTileShapes[] = {
    {16, 128, 1, 1, 1}, {64, 128, 1, 1, 1}, {128, 128, 2, 1, 1},
};
inline constexpr TileShape kRareTypes1D1DTileShapes[] = {{64, 64, 1, 1, 1}, {128, 128, 2, 1, 1}};

// clang-format on

inline constexpr uint32_t kMinStages = 3;
inline constexpr uint32_t kMaxStages = 16;

// The deepest pipeline that fits in shared memory; less than kMinStages means the tile does not.
constexpr uint32_t MaxStages(GemmConfig config) {
  config.num_stages = kMaxStages;
  while (config.num_stages > 0 && launch_smem_bytes(config) > kMaxSmemBytes) {
    --config.num_stages;
  }
  return config.num_stages;
}

// `untiled` with a tile, and as many stages as fit.
constexpr GemmConfig MakeConfig(GemmConfig untiled, const TileShape& tile) {
  GemmConfig config = untiled;
  config.block_m = tile.block_m;
  config.block_n = tile.block_n;
  config.num_consumers = tile.num_consumers;
  config.cluster_m = tile.cluster_m;
  config.cluster_n = tile.cluster_n;
  config.split_k = tile.split_k;
  config.num_stages = MaxStages(config);
  return config;
}

// Whether most programs of this kind use these element types, so that all tiles are worth having:
// e4m3 activations and weights to bfloat16, and weight gradients to float32.
constexpr bool HasUsualTypes(const GemmConfig& untiled) {
  if (untiled.a_type != Fp8Type::kE4M3 || untiled.b_type != Fp8Type::kE4M3) return false;
  if (untiled.scaling == Scaling::k1D1D) return untiled.d_type == OutType::kF32;
  return untiled.d_type == OutType::kBF16 && !untiled.accumulate;
}

// The tiles to choose from; not all may fit.
constexpr std::span<const TileShape> TileShapesOf(const GemmConfig& untiled) {
  const bool is_1d1d = untiled.scaling == Scaling::k1D1D;
  const bool is_dense = untiled.kind == GemmKind::kDense;
  if (!HasUsualTypes(untiled)) {
    if (is_1d1d) return kRareTypes1D1DTileShapes;
    if (is_dense) return kRareTypesDenseTileShapes;
    return kRareTypesGroupedTileShapes;
  }
  if (is_1d1d) return k1D1DTileShapes;
  if (is_dense) return kDenseTileShapes;
  if (untiled.kind == GemmKind::kRagged) return kRaggedTileShapes;
  if (untiled.kind == GemmKind::kMasked) return kMaskedTileShapes;
  return kContiguousTileShapes;
}

// Registers a consumer thread needs: accumulators, partial sums, with 1d1d the scales of its
// columns, and what the compiler was seen to use beside them.
constexpr uint32_t NeededRegisters(const GemmConfig& config) {
  const uint32_t fragment = config.block_n / 2;
  const uint32_t sums = config.row_slices() * fragment + fragment;
  return config.scaling == Scaling::k1D1D ? sums + config.block_n / 4 + 20 : sums + 32;
}

// Rules of the kinds of GEMM; see BrokenRule.
constexpr const char* BrokenKindRule(const GemmConfig& config) {
  if (!HasScaling(TraitsOf(config.kind), config.scaling)) {
    return config.scaling == Scaling::k1D1D ? "1d1d kernels are dense or K-grouped"
                                            : "K-grouped kernels are 1d1d";
  }
  if (config.accumulate && !TraitsOf(config.kind).accumulates) {
    return "only dense and K-grouped kernels accumulate";
  }
  if (config.accumulate && d_slabs(config) != config.row_slices()) {
    return "an accumulating tile must fit in shared memory whole";
  }
  if (config.kind == GemmKind::kContiguous &&
      (kContiguousAlignment % config.block_m != 0 || config.cluster_m != 1)) {
    return "contiguous groups need tiles within 128 rows and no cluster along M";
  }
  return nullptr;
}

constexpr const char* BrokenSplitKRule(const GemmConfig& config) {
  const uint32_t split = config.split_k;
  if (split == 1) return nullptr;
  if (split != 2 && split != 4 && split != 8) return "split_k must be 1, 2, 4 or 8";
  if (config.sharing() != 1 || config.row_slices() != 1 || config.kind != GemmKind::kDense ||
      config.accumulate) {
    return "split K is for dense kernels of one row slice that share no operands and add"
           " no accumulator";
  }
  if (config.block_n % (16 * split) != 0) return "split_k must divide block_n into multiples of 16";
  return nullptr;
}

// What a kernel relies on; checked for the table when it is compiled and for a user's choice when
// it is parsed. Nullptr when legal, else the rule that is broken.
constexpr const char* BrokenRule(const GemmConfig& config) {
  const uint32_t n = config.block_n;
  const uint32_t consumers = config.num_consumers;
  if (consumers < 1 || consumers > 3) return "num_consumers must be 1, 2 or 3";
  if (config.block_m == 0 ||
      (config.block_m % kMmaM != 0 && config.block_m != 16 && config.block_m != 32)) {
    return "block_m must be 16, 32 or a multiple of 64";
  }
  if (config.block_m > 256 || config.consumer_rows() * consumers != max(config.block_m, kMmaM) ||
      config.row_slices() > 2) {
    return "block_m must be 64 or 128 rows for each consumer, and at most 256";
  }
  if (n < 16 || n > 192 || n % 16 != 0) return "block_n must be a multiple of 16 from 16 to 192";
  if (config.scaling == Scaling::k1D2D && n > kScaleBlockN &&
      gcd(n, kScaleBlockN) < n - kScaleBlockN) {
    return "block_n must not let a tile touch three scale blocks";
  }
  if (NeededRegisters(config) > (config.moves_registers() ? config.consumer_registers() : 255u)) {
    return "accumulators, partial sums and scales must fit in the registers of a thread";
  }
  if (const char* rule = BrokenKindRule(config)) return rule;
  // Each by itself first: the product of large ones can be anything.
  if (config.cluster_m < 1 || config.cluster_m > 2 || config.cluster_n < 1 ||
      config.cluster_n > 2 || config.sharing() > 2) {
    return "at most two CTAs can share operands";
  }
  if (config.sharing() == 2 && config.block_m < 128) {
    return "CTAs that share operands must have block_m of 128 or more";
  }
  if (const char* rule = BrokenSplitKRule(config)) return rule;
  if (config.num_stages < kMinStages || config.num_stages > kMaxStages) {
    return "num_stages must be from 3 to 16";
  }
  if (launch_smem_bytes(config) > kMaxSmemBytes) return "shared memory must fit in 232448 bytes";
  return nullptr;
}

// Calls visit(untiled) for every combination of kind, scaling, element types and accumulation.
template <typename Visit>
constexpr void ForEachTypeCombination(Visit visit) {
  for (const Scaling scaling : {Scaling::k1D2D, Scaling::k1D1D}) {
    for (const KindTraits& traits : kKinds) {
      if (!HasScaling(traits, scaling)) continue;
      for (uint32_t variant = 0; variant < 24; ++variant) {
        GemmConfig untiled;
        untiled.kind = traits.value;
        untiled.scaling = scaling;
        untiled.a_type = variant & 1 ? Fp8Type::kE5M2 : Fp8Type::kE4M3;
        untiled.b_type = variant & 2 ? Fp8Type::kE5M2 : Fp8Type::kE4M3;
        untiled.accumulate = (variant & 4) != 0;
        untiled.d_type = static_cast<OutType>(variant / 8);
        visit(untiled);
      }
    }
  }
}

// Every candidate, in the order of the table of its tiles.
inline std::vector<GemmConfig> CandidatesOf(const GemmConfig& untiled) {
  std::vector<GemmConfig> configs;
  for (const TileShape& tile : TileShapesOf(untiled)) {
    const GemmConfig config = MakeConfig(untiled, tile);
    if (BrokenRule(config) == nullptr) configs.push_back(config);
  }
  return configs;
}

// Every configuration that the heuristics can return for any problem (without .pdl).
inline std::vector<GemmConfig> AllCandidates() {
  std::vector<GemmConfig> configs;
  ForEachTypeCombination([&](const GemmConfig& untiled) {
    const std::vector<GemmConfig> some = CandidatesOf(untiled);
    configs.insert(configs.end(), some.begin(), some.end());
  });
  return configs;
}

}  // namespace fp8gemm
