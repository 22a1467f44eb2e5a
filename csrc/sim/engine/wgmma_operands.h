// SPDX-License-Identifier: Apache-2.0
// Operands of a wgmma as the instruction encodes them.
#pragma once
#include <cstdint>

#include "sim/engine/world.h"

namespace fp8gemm::sim {

/// A number that differs whenever operands do; lanes of a warp compare it.
uint64_t Fingerprint(const WgmmaOperands& operands);

/// Lists the smem offsets of the 16-byte chunks of a K-major operand: (rows, 2), row by row.
void ListChunks(uint64_t descriptor, uint32_t rows, const char* what, uint32_t* chunks);

}  // namespace fp8gemm::sim
