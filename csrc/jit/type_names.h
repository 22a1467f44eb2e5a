// SPDX-License-Identifier: Apache-2.0
// Names of element types in attributes and messages.
#pragma once
#include <string>

#include "shared/gemm_config.h"

namespace fp8gemm {

/// Names used in attributes and messages: "float8_e4m3fn", "float8_e5m2", "bfloat16", ...
/// @throws UnsupportedError  Not one of those names.
Fp8Type ParseFp8Type(const std::string& name);
OutType ParseOutType(const std::string& name);
const char* Fp8TypeName(Fp8Type type);
const char* OutTypeName(OutType type);

/// "fp8gemm::Fp8Type::kE4M3": a type as the text of a kernel names it.
const char* Fp8TypeLiteral(Fp8Type type);

}  // namespace fp8gemm
