// SPDX-License-Identifier: Apache-2.0
// The configurations of is_simulated() as one constant list, from which the kernel tables are made.
#pragma once
#include <cstddef>
#include <initializer_list>

#include "shared/sim_kernels.h"

namespace fp8gemm::sim {

struct ConfigList {
  static constexpr size_t kCapacity = 320;
  GemmConfig configs[kCapacity];
  size_t size = 0;

  // Configurations of one combination of types, each tile once.
  template <size_t kCount>
  constexpr void Add(const GemmConfig& types, const TileShape (&tiles)[kCount]) {
    for (const TileShape& tile : tiles) {
      const GemmConfig config = make_config(types, tile);
      if (broken_rule(config) == nullptr && is_simulated(config)) configs[size++] = config;
    }
  }
};

constexpr ConfigList MakeConfigList() {
  ConfigList list{};
  for (const bool pdl : {false, true}) {
    for (const bool accumulate : {false, true}) {
      for (const OutType d : {OutType::kBF16, OutType::kF16, OutType::kF32}) {
        for (const Fp8Type a : {Fp8Type::kE4M3, Fp8Type::kE5M2}) {
          for (const Fp8Type b : {Fp8Type::kE4M3, Fp8Type::kE5M2}) {
            GemmConfig types;
            types.a_type = a;
            types.b_type = b;
            types.d_type = d;
            types.accumulate = accumulate;
            types.pdl = pdl;
            if (has_all_tile_shapes(types)) {
              list.Add(types, kTileShapes);
            } else {
              list.Add(types, kCommonTileShapes);
            }
          }
        }
      }
    }
  }
  return list;
}

inline constexpr ConfigList kSimulatedConfigs = MakeConfigList();

}  // namespace fp8gemm::sim
