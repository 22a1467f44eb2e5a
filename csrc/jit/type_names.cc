// SPDX-License-Identifier: Apache-2.0
// Writing and parsing names of element types.
#include "jit/type_names.h"

#include "driver/error.h"

namespace fp8gemm {

Fp8Type ParseFp8Type(const std::string& name) {
  for (const Fp8Type type : {Fp8Type::kE4M3, Fp8Type::kE5M2}) {
    if (name == Fp8TypeName(type)) return type;
  }
  throw UnsupportedError("operands must be float8_e4m3fn or float8_e5m2, got " + name);
}

OutType ParseOutType(const std::string& name) {
  for (const OutType type : {OutType::kBF16, OutType::kF16, OutType::kF32}) {
    if (name == OutTypeName(type)) return type;
  }
  throw UnsupportedError("results must be bfloat16, float16 or float32, got " + name);
}

const char* Fp8TypeName(Fp8Type type) {
  return type == Fp8Type::kE4M3 ? "float8_e4m3fn" : "float8_e5m2";
}

const char* Fp8TypeLiteral(Fp8Type type) {
  return type == Fp8Type::kE4M3 ? "fp8gemm::Fp8Type::kE4M3" : "fp8gemm::Fp8Type::kE5M2";
}

const char* OutTypeName(OutType type) {
  switch (type) {
    case OutType::kBF16: return "bfloat16";
    case OutType::kF16: return "float16";
    case OutType::kF32: return "float32";
  }
  return "unknown";
}

}  // namespace fp8gemm
