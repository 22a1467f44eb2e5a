// SPDX-License-Identifier: Apache-2.0
// Reading a custom call: its attributes by name and type, and its buffers, checked against what the
// attributes promise, as memory safety needs it and no more.
#pragma once
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "shared/gemm_config.h"
#include "xla/ffi/api/ffi.h"

namespace fp8gemm {

/// @throws std::invalid_argument  There is none of that name and type.
template <typename T>
T Attribute(const xla::ffi::Dictionary& attributes, const char* name) {
  xla::ffi::ErrorOr<T> value = attributes.get<T>(name);
  if (!value.has_value()) {
    throw std::invalid_argument(std::string("attribute ") + name + ": " + value.error().message());
  }
  return *value;
}

/// The attributes of a call for ReadProblem and its like. Throws as `Attribute`.
struct AttributeReader {
  const xla::ffi::Dictionary& attributes;

  std::string Text(const char* name) const {
    return std::string(Attribute<std::string_view>(attributes, name));
  }
  int64_t Number(const char* name) const { return Attribute<int64_t>(attributes, name); }
  bool Flag(const char* name) const { return Attribute<bool>(attributes, name); }
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
