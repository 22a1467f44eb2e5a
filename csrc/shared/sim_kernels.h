// SPDX-License-Identifier: Apache-2.0
// Which of the candidate configurations are compiled into the simulator.
#pragma once
#include <shared/candidates.h>

namespace fp8gemm {

// Tiles that are also simulated as dependent launches: with a cluster and without.
inline constexpr TileShape kDependentLaunchTileShapes[] = {{16, 32, 1, 1, 1}, {128, 128, 2, 2, 1}};

template <uint32_t kCount>
FP8GEMM_HOST_DEVICE constexpr bool has_any_tile(const GemmConfig& config,
                                                const TileShape (&tiles)[kCount]) {
  for (const TileShape& tile : tiles) {
    if (config == make_config(config, tile)) return broken_rule(config) == nullptr;
  }
  return false;
}

// All that the planner can return, and a few dependent launches.
FP8GEMM_HOST_DEVICE constexpr bool is_simulated(const GemmConfig& config) {
  if (config.pdl) {
    return has_all_tile_shapes(config) && has_any_tile(config, kDependentLaunchTileShapes);
  }
  return has_all_tile_shapes(config) ? has_any_tile(config, kTileShapes)
                                     : has_any_tile(config, kCommonTileShapes);
}

}  // namespace fp8gemm
