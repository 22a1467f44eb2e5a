// SPDX-License-Identifier: Apache-2.0
// Reading a custom call: its attributes by name and type; its buffers, checked against what the
// attributes promise, as memory safety needs it and no more.
#pragma once
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include "shared/gemm_config.h"
#include "xla/ffi/api/ffi.h"

namespace fp8gemm {

/// The attributes of a call for ReadProblem and its like.
struct AttributeReader {
  const xla::ffi::Dictionary& attributes;

  /// @throws std::invalid_argument  There is no attribute of that name and type. So do the others.
  template <typename T>
  T Get(const char* name) const {
    const xla::ffi::ErrorOr<T> value = attributes.get<T>(name);
    if (value.has_value()) return *value;
    throw std::invalid_argument(std::string("attribute ") + name + ": " + value.error().message());
  }
  std::string Text(const char* name) const { return std::string(Get<std::string_view>(name)); }
  int64_t Number(const char* name) const { return Get<int64_t>(name); }
  bool Flag(const char* name) const { return Get<bool>(name); }
};

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

/// Address of a buffer that must have this element type and these extents. Allocates nothing, but
/// for a message.
/// @throws std::invalid_argument  It has others; the message names the operand, and what both are.
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

/// The operands of a call (RemainingArgs) or its results (RemainingRets), one after the other, each
/// checked before it is used.
template <typename Remaining>
class Buffers {
 public:
  /// @throws std::invalid_argument  There are not `expected` of them.
  Buffers(Remaining buffers, size_t expected) : buffers_(buffers) {
    if (buffers.size() == expected) return;
    throw std::invalid_argument("expected " + std::to_string(expected) +
                                (kAreOperands ? " operands" : " results") + ", got " +
                                std::to_string(buffers.size()));
  }

  void* Next(const char* name, xla::ffi::DataType type, std::span<const int64_t> extents) {
    auto buffer = buffers_.template get<xla::ffi::AnyBuffer>(next_++);
    if constexpr (kAreOperands) {
      return CheckedData(name, *buffer, type, extents);
    } else {
      return CheckedData(name, **buffer, type, extents);
    }
  }
  void* Next(const char* name, xla::ffi::DataType type, std::initializer_list<int64_t> extents) {
    return Next(name, type, std::span(extents.begin(), extents.size()));
  }

 private:
  static constexpr bool kAreOperands = std::is_same_v<Remaining, xla::ffi::RemainingArgs>;
  Remaining buffers_;
  size_t next_ = 0;
};

}  // namespace fp8gemm
