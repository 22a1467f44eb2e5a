// SPDX-License-Identifier: Apache-2.0
// The 64-bit matrix descriptor by which wgmma finds an operand in shared memory.
//
//   bits  0-13  start address >> 4          bits 32-45  stride byte offset >> 4
//   bits 16-29  leading byte offset >> 4    bits 62-63  swizzle: 1 = 128B
//
// For a K-major operand of 128-byte rows with 128B swizzle the stride is the distance of two 8-row
// groups, 1024 bytes, and the leading offset is unused. A step of 32 bytes along K inside the
// swizzle atom adds 2 to the start address: the hardware swizzles absolute addresses.
// PTX ISA: "Matrix Descriptor Format" (wgmma).
#pragma once
#include <ptx/base.cuh>
#include <shared/smem_layout.h>

namespace fp8gemm {

// Start address of a descriptor, in its unit of 16 bytes. It has 14 bits, so that what is added to
// reach other places in shared memory never carries into the next field.
FP8GEMM_DEVICE uint32_t descriptor_start(uint32_t smem_address) {
  return (smem_address & 0x3ffff) >> 4;
}

FP8GEMM_DEVICE uint64_t make_k_major_descriptor(uint32_t start) {
  constexpr uint64_t kStride = static_cast<uint64_t>(kSwizzleAtomBytes >> 4) << 32;
  constexpr uint64_t kSwizzle128B = static_cast<uint64_t>(1) << 62;
  return start | kStride | kSwizzle128B;
}

// `bytes` in the unit of a descriptor's start address.
FP8GEMM_DEVICE constexpr uint32_t descriptor_offset(uint32_t bytes) { return bytes >> 4; }

}  // namespace fp8gemm
