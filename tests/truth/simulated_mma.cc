// SPDX-License-Identifier: Apache-2.0
// The simulator's arithmetic of one wgmma, for Python.
#include "sim/engine/mma_math.h"

extern "C" void SimulatedMma(const uint8_t* a, const uint8_t* b, uint32_t n, uint32_t a_type,
                             uint32_t b_type, float* tile) {
  const fp8gemm::sim::MmaOperands operands{a, b, n, a_type, b_type};
  fp8gemm::sim::Multiply(operands, fp8gemm::sim::kNumericsHopper, true, tile);
}
