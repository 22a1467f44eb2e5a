// SPDX-License-Identifier: Apache-2.0
// What types and other choices are called, as tables.
#pragma once
#include <cstddef>
#include <string>

#include "driver/error.h"
#include "shared/gemm_config.h"

namespace fp8gemm {

template <typename Type>
struct Named {
  Type value;
  const char* name;     // in attributes and messages
  const char* key;      // in keys of configurations
  const char* literal;  // in the text of a kernel
};

/// Whether the values of a table are its indices.
template <typename Entry, size_t kCount>
constexpr bool IsInOrder(const Entry (&table)[kCount]) {
  for (size_t i = 0; i < kCount; ++i) {
    if (size_t(table[i].value) != i) return false;
  }
  return true;
}

/// In the order of their enumerations.
inline constexpr Named<Fp8Type> kFp8Types[] = {
    {Fp8Type::kE4M3, "float8_e4m3fn", "e4m3", "fp8gemm::Fp8Type::kE4M3"},
    {Fp8Type::kE5M2, "float8_e5m2", "e5m2", "fp8gemm::Fp8Type::kE5M2"},
};
inline constexpr Named<OutType> kOutTypes[] = {
    {OutType::kBF16, "bfloat16", "bf16", "fp8gemm::OutType::kBF16"},
    {OutType::kF16, "float16", "f16", "fp8gemm::OutType::kF16"},
    {OutType::kF32, "float32", "f32", "fp8gemm::OutType::kF32"},
};
inline constexpr Named<Scaling> kScalings[] = {
    {Scaling::k1D2D, "1d2d", "1d2d", "fp8gemm::Scaling::k1D2D"},
    {Scaling::k1D1D, "1d1d", "1d1d", "fp8gemm::Scaling::k1D1D"},
};
static_assert(IsInOrder(kFp8Types) && IsInOrder(kOutTypes) && IsInOrder(kScalings));

constexpr const Named<Fp8Type>& NamesOf(Fp8Type type) { return kFp8Types[size_t(type)]; }
constexpr const Named<OutType>& NamesOf(OutType type) { return kOutTypes[size_t(type)]; }
constexpr const Named<Scaling>& NamesOf(Scaling scaling) { return kScalings[size_t(scaling)]; }

/// The entry of a table with this name, of what messages call `called`.
/// @throws UnsupportedError  There is none; the message has all names.
template <typename Entry, size_t kCount>
const Entry& ByName(const std::string& called, const Entry (&table)[kCount],
                    const std::string& name) {
  for (const Entry& entry : table) {
    if (name == entry.name) return entry;
  }
  std::string names;
  for (size_t i = 0; i < kCount; ++i) {
    names += (i == 0 ? "" : i + 1 < kCount ? ", " : " or ") + std::string(table[i].name);
  }
  throw UnsupportedError(called + " must be " + names + ", got '" + name + "'");
}

}  // namespace fp8gemm
