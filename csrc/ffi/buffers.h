// SPDX-License-Identifier: Apache-2.0
// Checks of FFI buffers against what the attributes promise: what memory safety needs, no more.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "shared/gemm_config.h"
#include "xla/ffi/api/ffi.h"

namespace fp8gemm {

/// XLA's element type for ours.
inline xla::ffi::DataType ToDataType(Fp8Type type) {
  return type == Fp8Type::kE4M3 ? xla::ffi::DataType::F8E4M3FN : xla::ffi::DataType::F8E5M2;
}

inline xla::ffi::DataType ToDataType(OutType type) {
  switch (type) {
    case OutType::kBF16: return xla::ffi::DataType::BF16;
    case OutType::kF16: return xla::ffi::DataType::F16;
    case OutType::kF32: return xla::ffi::DataType::F32;
  }
  return xla::ffi::DataType::INVALID;
}

/// Address of a buffer that must have this element type and these extents.
/// @throws std::invalid_argument  It has not; the message names the operand and both.
template <typename Buffer>
void* CheckedData(const char* operand, Buffer& buffer, xla::ffi::DataType type,
                  const std::vector<int64_t>& extents) {
  const auto got = buffer.dimensions();
  bool matches = buffer.element_type() == type && got.size() == extents.size();
  std::string wanted;
  for (size_t i = 0; i < extents.size(); ++i) {
    const int64_t extent = extents[i];
    matches = matches && got[i] == extent;
    wanted += (i != 0 ? ", " : "") + std::to_string(extent);
  }
  if (!matches) {
    std::string actual;
    for (size_t i = 0; i < got.size(); ++i) {
      actual += (i != 0 ? ", " : "") + std::to_string(got[i]);
    }
    throw std::invalid_argument(std::string(operand) + " must have shape (" + wanted +
                                ") and XLA element type " + std::to_string(int(type)) +
                                ", got (" + actual + ") and " +
                                std::to_string(int(buffer.element_type())));
  }
  return buffer.untyped_data();
}

}  // namespace fp8gemm
