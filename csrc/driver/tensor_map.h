// SPDX-License-Identifier: Apache-2.0
// Tensor maps, the descriptors of TMA copies, and how long what they describe can be.
#pragma once
#include <cstdint>

#include "driver/driver.h"

namespace fp8gemm {

/// Bytes that base address, pitch and box rows must be multiples of.
inline constexpr int64_t kTmaAlignmentBytes = 16;

/// The longest extent of an array, of any kernel: TMA's coordinates are int32, and tiles reach up
/// to 2 * 256 past the end.
inline constexpr int64_t kMaxExtent = (int64_t{1} << 31) - 1 - 512;

/// @throws UnsupportedError  `value` is not from 1 to `most`; the message has all three.
void CheckExtent(const char* name, int64_t value, int64_t most = kMaxExtent);

/// A 2-D tensor in global memory and the box one TMA instruction moves. Dimension 0 is contiguous.
struct TensorMapSpec {
  const char* operand = "operand";  // for error messages, e.g. "a" or "sfa"
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  void* base = nullptr;      // device address, 16-byte aligned
  uint64_t dim0 = 0;         // elements of a row
  uint64_t dim1 = 0;         // rows
  uint64_t pitch_bytes = 0;  // from one row to the next; a multiple of 16
  uint32_t box0 = 0;         // elements of a row of the box
  uint32_t box1 = 0;         // rows of the box
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_NONE;
  CUtensorMapL2promotion l2_promotion = CU_TENSOR_MAP_L2_PROMOTION_NONE;
};

/// Encodes a map whose out-of-bounds elements read as zero and are never written.
///
/// @throws std::invalid_argument  The address is null or not aligned, which is the one rule that
///     callers can break: XLA may pass a slice where it lies. The message names the operand.
/// @throws CudaError  The driver refused; the message names the operand.
CUtensorMap Encode2d(const DriverApi& api, const TensorMapSpec& spec);

}  // namespace fp8gemm
