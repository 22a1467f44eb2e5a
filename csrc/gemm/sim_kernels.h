// SPDX-License-Identifier: Apache-2.0
// Which of the candidate configurations are compiled into the simulator.
#pragma once
#include <span>

#include "gemm/candidates.h"

namespace fp8gemm {

// Tiles that are also simulated as dependent launches: with a cluster and without.
inline constexpr TileShape kDependentLaunchTileShapes[] = {{16, 32, 1, 1, 1}, {128, 128, 2, 2, 1}};

// All that the heuristics can return, and a few dependent launches.
constexpr bool IsSimulated(const GemmConfig& config) {
  const bool is_usual_dense =
      config.kind == GemmKind::kDense && config.scaling == Scaling::k1D2D && HasUsualTypes(config);
  if (config.pdl && !is_usual_dense) return false;
  std::span<const TileShape> tiles = TileShapesOf(config);
  if (config.pdl) tiles = kDependentLaunchTileShapes;
  for (const TileShape& tile : tiles) {
    if (config == MakeConfig(config, tile)) return BrokenRule(config) == nullptr;
  }
  return false;
}

}  // namespace fp8gemm
