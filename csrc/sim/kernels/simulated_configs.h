// SPDX-License-Identifier: Apache-2.0
// The configurations of IsSimulated() as one constant list, from which the kernel tables are made.
#pragma once
#include <cstddef>

#include "gemm/sim_kernels.h"

namespace fp8gemm::sim {

struct ConfigList {
  static constexpr size_t kCapacity = 768;
  GemmConfig configs[kCapacity];
  size_t size = 0;
};

constexpr ConfigList MakeConfigList() {
  ConfigList list{};
  ForEachTypeCombination([&](GemmConfig untiled) {
    for (uint32_t pdl = 0; pdl < 2; ++pdl) {
      untiled.pdl = pdl != 0;
      for (const TileShape& tile : TileShapesOf(untiled)) {
        const GemmConfig config = MakeConfig(untiled, tile);
        if (IsSimulated(config)) list.configs[list.size++] = config;
      }
    }
  });
  return list;
}

inline constexpr ConfigList kSimulatedConfigs = MakeConfigList();

}  // namespace fp8gemm::sim
