// SPDX-License-Identifier: Apache-2.0
// Division by a number that the host knows before the launch: a multiplication and a shift, where
// the GPU's own division is a chain of some twenty instructions.
#pragma once
#include <shared/types.h>

namespace fp8gemm {

// Divides x below 2^31 by `divisor`, 1 to 2^31. With l = ceil(log2(divisor)) and
// m = ceil(2^(31 + l) / divisor), which 32 bits hold, x / divisor = floor(x m / 2^(31 + l)):
// Granlund and Montgomery, "Division by Invariant Integers using Multiplication", theorem 4.2.
struct FastDivisor {
  uint32_t divisor;
  uint32_t multiplier;  // m
  uint32_t shift;       // l

  FP8GEMM_HOST_DEVICE constexpr uint32_t quotient(uint32_t x) const {
    return static_cast<uint32_t>((uint64_t{2 * x} * multiplier) >> 32) >> shift;
  }
};

FP8GEMM_HOST_DEVICE constexpr FastDivisor fast_divisor(uint32_t divisor) {
  uint32_t shift = 0;
  while ((uint64_t{1} << shift) < divisor) ++shift;
  const uint64_t multiplier = ceil_div<uint64_t>(uint64_t{1} << (31 + shift), divisor);
  return {divisor, static_cast<uint32_t>(multiplier), shift};
}

}  // namespace fp8gemm
