// SPDX-License-Identifier: Apache-2.0
// Checks of FFI buffers against what the attributes promise: what memory safety needs, no more.
#pragma once
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>

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

inline std::string ShapeText(std::span<const int64_t> extents) {
  std::string text;
  for (const int64_t extent : extents) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return "(" + text + ")";
}

/// Address of a buffer that must have this element type and these extents. Allocates nothing
/// unless it has not.
/// @throws std::invalid_argument  It has not; the message names the operand and both.
inline void* CheckedData(const char* operand, xla::ffi::AnyBuffer buffer, xla::ffi::DataType type,
                         std::span<const int64_t> extents) {
  const auto got = buffer.dimensions();
  if (buffer.element_type() == type &&
      std::equal(got.begin(), got.end(), extents.begin(), extents.end())) {
    return buffer.untyped_data();
  }
  throw std::invalid_argument(std::string(operand) + " must have shape " + ShapeText(extents) +
                              " and XLA element type " + std::to_string(int(type)) + ", got " +
                              ShapeText({got.begin(), got.size()}) + " and " +
                              std::to_string(int(buffer.element_type())));
}

inline void* CheckedData(const char* operand, xla::ffi::AnyBuffer buffer, xla::ffi::DataType type,
                         std::initializer_list<int64_t> extents) {
  return CheckedData(operand, buffer, type, std::span(extents.begin(), extents.size()));
}

/// The operands of a call one after the other, each checked before it is used.
class Operands {
 public:
  /// @throws std::invalid_argument  There are not `expected` of them.
  Operands(xla::ffi::RemainingArgs args, size_t expected) : args_(args) {
    if (args.size() != expected) {
      throw std::invalid_argument("expected " + std::to_string(expected) + " operands, got " +
                                  std::to_string(args.size()));
    }
  }

  template <typename Extents>
  void* Next(const char* name, xla::ffi::DataType type, const Extents& extents) {
    return CheckedData(name, *args_.get<xla::ffi::AnyBuffer>(next_++), type, extents);
  }
  void* Next(const char* name, xla::ffi::DataType type, std::initializer_list<int64_t> extents) {
    return CheckedData(name, *args_.get<xla::ffi::AnyBuffer>(next_++), type, extents);
  }

 private:
  xla::ffi::RemainingArgs args_;
  size_t next_ = 0;
};

}  // namespace fp8gemm
