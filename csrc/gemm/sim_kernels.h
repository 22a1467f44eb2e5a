// SPDX-License-Identifier: Apache-2.0
// Which of the candidate configurations are compiled into the simulator.
#pragma once
#include "gemm/candidates.h"

namespace fp8gemm {

// Tiles that are also simulated as dependent launches: with a cluster and without.
inline constexpr TileShape kDependentLaunchTileShapes[] = {{16, 32, 1, 1, 1}, {128, 128, 2, 2, 1}};

// All that the planner can return, and a few dependent launches.
constexpr bool is_simulated(const GemmConfig& config) {
  const bool is_common_dense = config.kind == GemmKind::kDense &&
                               config.scaling == Scaling::k1D2D && has_all_tile_shapes(config);
  if (config.pdl && !is_common_dense) return false;
  const TileShapes tiles =
      config.pdl ? TileShapes(kDependentLaunchTileShapes) : tile_shapes(config);
  for (const TileShape& tile : tiles) {
    if (config == make_config(config, tile)) return broken_rule(config) == nullptr;
  }
  return false;
}

}  // namespace fp8gemm
