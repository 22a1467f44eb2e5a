// SPDX-License-Identifier: Apache-2.0
// GemmProblem: what one call computes, as far as a plan depends on it.
#pragma once
#include <cstdint>
#include <string>

#include "shared/gemm_config.h"

namespace fp8gemm {

/// d (m, n) = [c +] a (m, k) b (n, k)^T with scales per 1x128 of a and per 128x128 of b.
struct GemmProblem {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  Fp8Type a_type = Fp8Type::kE4M3;
  Fp8Type b_type = Fp8Type::kE4M3;
  OutType d_type = OutType::kBF16;
  bool accumulate = false;
  bool pdl = false;
  int num_sms = 132;  // SMs to plan for
  int sm_limit = 0;   // most SMs the launch may occupy; 0: all of the device

  /// Element types and flags, as a configuration whose tile is still to be chosen.
  GemmConfig types() const;
  std::string ToString() const;
};

/// @throws UnsupportedError  An extent is not in [1, 2^31 - 1 - 256], which TMA coordinates of
///     tiles past the edge still have to fit, or num_sms < 1; the message names it.
void ValidateProblem(const GemmProblem& problem);

/// Names used in attributes, keys and messages: "float8_e4m3fn", "float8_e5m2", "bfloat16", ...
/// @throws UnsupportedError  Not one of those names.
Fp8Type ParseFp8Type(const std::string& name);
OutType ParseOutType(const std::string& name);
const char* Fp8TypeName(Fp8Type type);
const char* OutTypeName(OutType type);

}  // namespace fp8gemm
