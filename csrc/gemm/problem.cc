// SPDX-License-Identifier: Apache-2.0
// Validation and naming of GEMM problems.
#include "gemm/problem.h"

#include "driver/tensor_map.h"

namespace fp8gemm {
namespace {

// The kernels divide numbers of tiles below 2^31 (shared/fast_divisor.h). Ends of ragged groups,
// and the numbers past the end at which CTAs stop, add less than 2^29.
constexpr int64_t kMaxTiles = int64_t{1} << 30;

}  // namespace

GemmConfig GemmProblem::untiled_config() const {
  return {.kind = kind,
          .scaling = scaling,
          .a_type = a_type,
          .b_type = b_type,
          .d_type = d_type,
          .accumulate = accumulate,
          .pdl = pdl};
}

std::string GemmProblem::ToString() const {
  const bool has_groups = kind != GemmKind::kDense || num_groups != 1;
  const std::string groups = has_groups ? " groups=" + std::to_string(num_groups) : "";
  return std::string(traits().name) + " " + NamesOf(scaling).name + groups +
         " m=" + std::to_string(m) + " n=" + std::to_string(n) + " k=" + std::to_string(k) + " " +
         NamesOf(a_type).name + " x " + NamesOf(b_type).name + " -> " + NamesOf(d_type).name +
         (accumulate ? " (accumulating)" : "") + " on " + std::to_string(num_sms) + " SMs" +
         (sm_limit != 0 ? " of at most " + std::to_string(sm_limit) : "") +
         (expected_m != 0 ? " expected_m=" + std::to_string(expected_m) : "") +
         (zero_padding ? " zero_padding" : "") + (pdl ? " pdl" : "");
}

void ValidateProblem(const GemmProblem& problem) {
  CheckExtent("m", problem.m);
  CheckExtent("n", problem.n);
  CheckExtent("k", problem.k);
  CheckExtent("num_groups", problem.num_groups, kMaxGroups);
  CheckExtent("the number of rows of all groups of a", problem.a_rows());
  CheckExtent("the number of rows of all groups of b", problem.b_rows());
  CheckExtent("the number of rows of all groups of d", problem.d_rows());
  // Matrices of groups start a tile each.
  const int64_t matrices = problem.d_rows() / problem.m;
  const int64_t tiles =
      matrices * ceil_div<int64_t>(problem.m, 16) * ceil_div<int64_t>(problem.n, 16);
  CheckExtent("the number of 16x16 tiles of all groups of d", tiles, kMaxTiles);
  CheckExtent("num_sms", problem.num_sms, kMaxSms);
  if (problem.sm_limit != 0) CheckExtent("sm_limit", problem.sm_limit, kMaxSms);
}

}  // namespace fp8gemm
