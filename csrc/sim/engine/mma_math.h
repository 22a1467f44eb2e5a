// SPDX-License-Identifier: Apache-2.0
// The arithmetic of one wgmma m64nNk32 on fp8 operands.
#pragma once
#include <cstdint>

#include "sim/options.h"

namespace fp8gemm::sim {

inline constexpr uint32_t kMmaRows = 64;
inline constexpr uint32_t kMmaDepth = 32;
inline constexpr uint32_t kMaxMmaColumns = 256;

struct MmaOperands {
  const uint8_t* a;  // (64, 32)
  const uint8_t* b;  // (n, 32)
  uint32_t n;        // a multiple of 8
  uint32_t a_type;   // values of Fp8Type
  uint32_t b_type;
};

/// tile (64, n) = [tile +] a * b^T, or without the tile if not `accumulate`.
void Multiply(const MmaOperands& operands, Numerics numerics, bool accumulate, float* tile);

}  // namespace fp8gemm::sim
