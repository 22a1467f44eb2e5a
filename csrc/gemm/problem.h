// SPDX-License-Identifier: Apache-2.0
// GemmProblem: what one call computes, as far as a plan depends on it.
#pragma once
#include <cstdint>
#include <string>

#include "jit/type_names.h"
#include "shared/smem_layout.h"

namespace fp8gemm {

/// d (m, n) = [c +] a (m, k) b (n, k)^T with block scales, one matrix or groups (see GemmKind).
struct GemmProblem {
  GemmKind kind = GemmKind::kDense;
  Scaling scaling = Scaling::k1D2D;
  int64_t m = 0;  // rows of d; ragged, contiguous: of all groups; masked: room of each group
  int64_t n = 0;
  int64_t k = 0;  // K-grouped: of all groups, each padded to a multiple of 128
  int64_t num_groups = 1;
  int64_t expected_m = 0;     // masked: rows that a group is likely to have; 0: unknown
  bool zero_padding = false;  // masked: write zeros to the rows that do not count
  Fp8Type a_type = Fp8Type::kE4M3;
  Fp8Type b_type = Fp8Type::kE4M3;
  OutType d_type = OutType::kBF16;
  bool accumulate = false;
  bool pdl = false;
  int num_sms = 132;  // SMs to plan for
  int sm_limit = 0;   // most SMs the launch may occupy; 0: all of the device

  /// Rows of `a`.
  int64_t a_rows() const { return kind == GemmKind::kMasked ? num_groups * m : m; }
  /// Rows of `b`, of all groups.
  int64_t b_rows() const { return has_group_weights() ? num_groups * n : n; }
  /// Rows of `d`, of all groups.
  int64_t d_rows() const { return kind == GemmKind::kKGrouped ? num_groups * m : a_rows(); }
  /// Whether each group has a matrix b of its own.
  bool has_group_weights() const {
    return kind != GemmKind::kDense && kind != GemmKind::kKGrouped;
  }
  /// Length of the array that divides the work (GemmParams::group_data); 0 if there is none.
  int64_t group_data_size() const {
    return kind == GemmKind::kDense ? 0 : kind == GemmKind::kContiguous ? m : num_groups;
  }

  /// Element types and flags, as a configuration whose tile is still to be chosen.
  GemmConfig types() const;
  std::string ToString() const;
};

/// @throws UnsupportedError  An extent (also of all groups together) is not from 1 to a little less
///     than 2^31, which TMA coordinates of tiles past the edge still have to fit; d has 2^31 tiles
///     or more; there are more groups than kMaxGroups; or num_sms < 1. The message names it.
void ValidateProblem(const GemmProblem& problem);

/// "dense", "ragged", "contiguous", "masked" or "k_grouped".
/// @throws UnsupportedError  Not one of those names.
GemmKind ParseKind(const std::string& name);
const char* KindName(GemmKind kind);

/// "1d2d" or "1d1d".
/// @throws UnsupportedError  Not one of those names.
Scaling ParseScaling(const std::string& name);
const char* ScalingName(Scaling scaling);

}  // namespace fp8gemm
