// SPDX-License-Identifier: Apache-2.0
// Decodes wgmma matrix descriptors ("Matrix Descriptor Format" of the PTX ISA).
#include "sim/engine/wgmma_operands.h"

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {
namespace {

constexpr uint32_t kGroupRows = 8;
// Start, leading offset, stride, base offset and swizzle.
constexpr uint64_t kFieldBits = 0xc00e3fff3fff3fff;

struct Descriptor {
  uint32_t start;          // address
  uint32_t leading_bytes;  // distance of two chunks along K; only without swizzle
  uint32_t stride_bytes;   // distance of two groups of eight rows
  uint32_t base_offset;
  uint32_t swizzle_bytes;  // 0, 32, 64 or 128; also the length of a row, 16 without swizzle
};

Descriptor Decode(uint64_t bits) {
  constexpr uint32_t kSwizzleBytes[] = {0, 128, 64, 32};
  const auto field = [bits](int shift) {
    return static_cast<uint32_t>(bits >> shift & 0x3fff) << 4;
  };
  return {field(0), field(16), field(32), static_cast<uint32_t>(bits >> 49 & 7),
          kSwizzleBytes[bits >> 62]};
}

// Within a swizzled row the start may move along K; what selects the row must be zero, or the
// pattern would be off by some rows.
void CheckStart(const Descriptor& descriptor, const char* what) {
  if (descriptor.base_offset != 0) Fatal("%s descriptor: base offset is not simulated", what);
  if (descriptor.swizzle_bytes == 0) return;
  const uint32_t atom_bytes = descriptor.swizzle_bytes * kGroupRows;
  const uint32_t in_atom = descriptor.start % atom_bytes;
  if (in_atom + 32 > descriptor.swizzle_bytes) {
    Fatal("%s descriptor: start %s is not in the first row of a %uB swizzle atom", what,
          SmemName(descriptor.start).c_str(), descriptor.swizzle_bytes);
  }
}

}  // namespace

uint64_t Fingerprint(const WgmmaOperands& operands) {
  constexpr uint64_t kMultiplier = 0x9e3779b97f4a7c15;
  uint64_t hash = operands.n | operands.a_type << 16 | operands.b_type << 17 |
                  static_cast<uint32_t>(operands.scale_d) << 18;
  for (const uint64_t value : {operands.a_desc, operands.b_desc}) {
    hash = (hash ^ value) * kMultiplier;
    hash ^= hash >> 29;
  }
  return hash;
}

void ListChunks(uint64_t descriptor_bits, uint32_t rows, const char* what, uint32_t* chunks) {
  if ((descriptor_bits & ~kFieldBits) != 0) {
    Fatal("%s descriptor %#llx: bits outside its fields, as after a carry out of the start", what,
          static_cast<unsigned long long>(descriptor_bits));
  }
  const Descriptor descriptor = Decode(descriptor_bits);
  CheckStart(descriptor, what);
  const bool is_swizzled = descriptor.swizzle_bytes != 0;
  const uint32_t row_bytes = is_swizzled ? descriptor.swizzle_bytes : 16;
  const uint32_t chunk_pitch = is_swizzled ? 16 : descriptor.leading_bytes;
  for (uint32_t row = 0; row < rows; ++row) {
    const uint32_t row_address = descriptor.start + row / kGroupRows * descriptor.stride_bytes +
                                 row % kGroupRows * row_bytes;
    for (uint32_t chunk = 0; chunk < 2; ++chunk) {
      const uint32_t address =
          SwizzleAddress(row_address + chunk * chunk_pitch, descriptor.swizzle_bytes);
      *chunks++ = SmemOffset(address, 16, 16, what);
    }
  }
}

}  // namespace fp8gemm::sim
