// SPDX-License-Identifier: Apache-2.0
// Reading the attributes of a custom call by name and type.
#pragma once
#include <stdexcept>
#include <string>
#include <string_view>

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

inline std::string StringAttribute(const xla::ffi::Dictionary& attributes, const char* name) {
  return std::string(Attribute<std::string_view>(attributes, name));
}

}  // namespace fp8gemm
