// SPDX-License-Identifier: Apache-2.0
// What the simulator puts into the 128 opaque bytes of a tensor map.
#pragma once
#include <cstdint>

namespace fp8gemm::sim {

inline constexpr uint64_t kTensorMapMagic = 0x70616d5f6d697366;
inline constexpr uint32_t kMaxTensorRank = 3;

struct SimTensorMap {
  uint64_t magic;
  uint8_t* base;
  uint64_t dims[kMaxTensorRank];               // elements, innermost first
  uint64_t strides_bytes[kMaxTensorRank - 1];  // of dimension 1 and up
  uint32_t box[kMaxTensorRank];                // elements
  uint32_t rank;
  uint32_t elem_bytes;
  uint32_t swizzle_bytes;  // span of the swizzle pattern: 0, 32, 64 or 128
};

static_assert(sizeof(SimTensorMap) <= 128);

// Where a 16-byte chunk of a swizzled row lies: bits 4-6 of the address are XORed with bits 7-9,
// as many of them as the span needs. TMA and wgmma use the same function of absolute addresses.
constexpr uint32_t SwizzleAddress(uint32_t address, uint32_t swizzle_bytes) {
  const uint32_t mask = swizzle_bytes == 0 ? 0 : swizzle_bytes - 16;
  return address ^ ((address >> 3) & mask);
}

}  // namespace fp8gemm::sim
