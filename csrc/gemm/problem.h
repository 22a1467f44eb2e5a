// SPDX-License-Identifier: Apache-2.0
// GemmProblem: what one call computes, as far as a plan depends on it.
#pragma once
#include <cstdint>
#include <string>

#include "driver/tensor_map.h"
#include "gemm/kinds.h"
#include "jit/type_names.h"
#include "shared/smem_layout.h"

namespace fp8gemm {

/// More SMs than any GPU has.
inline constexpr int64_t kMaxSms = 1024;

/// d (m, n) = [c +] a (m, k) b (n, k)^T with block scales, one matrix or groups (see GemmKind).
struct GemmProblem {
  GemmKind kind = GemmKind::kDense;
  Scaling scaling = Scaling::k1D2D;
  int64_t m = 0;  // rows of d; ragged, contiguous: of all groups; masked: capacity of each group
  int64_t n = 0;
  int64_t k = 0;  // K-grouped: of all groups, each padded to a multiple of 128
  int64_t num_groups = 1;
  int64_t expected_m = 0;     // masked: rows that a group is likely to have; 0: unknown
  bool zero_padding = false;  // masked: write zeros to the rows that are not valid
  Fp8Type a_type = Fp8Type::kE4M3;
  Fp8Type b_type = Fp8Type::kE4M3;
  OutType d_type = OutType::kBF16;
  bool accumulate = false;
  bool pdl = false;
  int64_t num_sms = 132;  // SMs to plan for
  int64_t sm_limit = 0;   // most SMs the launch may occupy; 0: all of the device

  const KindTraits& traits() const { return TraitsOf(kind); }
  /// Rows of `a`, of all groups.
  int64_t a_rows() const { return traits().has_group_rows ? num_groups * m : m; }
  /// Rows of `b`, of all groups.
  int64_t b_rows() const { return traits().has_group_weights ? num_groups * n : n; }
  /// Rows of `d`, of all groups.
  int64_t d_rows() const { return traits().has_group_results ? num_groups * m : m; }
  /// Length of the array that divides the work (GemmParams::group_data); 0 if there is none.
  int64_t group_data_size() const {
    const GroupData data = traits().group_data;
    return data == GroupData::kNone ? 0 : data == GroupData::kPerRow ? m : num_groups;
  }

  /// Elements from one row of `a`, or of `b`, to the next; rows are padded as TMA wants them.
  int64_t k_pitch() const { return align_up(k, kTmaAlignmentBytes); }
  /// The same of `d` and `c`.
  int64_t d_pitch() const { return align_up(n, kTmaAlignmentBytes / element_bytes(d_type)); }
  /// Floats from the scales of one K block to those of the next.
  int64_t sfa_pitch() const { return align_up<int64_t>(a_rows(), kScaleAlignment); }
  /// The same of `b`, with 1d1d.
  int64_t sfb_pitch() const { return align_up<int64_t>(b_rows(), kScaleAlignment); }

  /// Kind, scaling, element types and flags, as a configuration whose tile is still to be chosen.
  GemmConfig untiled_config() const;
  /// For messages.
  std::string ToString() const;
};

/// The problem whose fields `reader` has, under the names of attributes and of `Problem` in
/// jax_fp8gemm/_src/native/gemm_problem.py. `reader.Text(name)`, `reader.Number(name)` and
/// `reader.Flag(name)` return a field, or throw if there is none. `pdl` and `sm_limit` are not
/// read: they belong to a launch.
/// @throws UnsupportedError  A name is not known.
template <typename Reader>
GemmProblem ReadProblem(const Reader& reader) {
  return {.kind = ByName("kind", kKinds, reader.Text("kind")).value,
          .scaling = ByName("scaling", kScalings, reader.Text("scaling")).value,
          .m = reader.Number("m"),
          .n = reader.Number("n"),
          .k = reader.Number("k"),
          .num_groups = reader.Number("num_groups"),
          .expected_m = reader.Number("expected_m"),
          .zero_padding = reader.Flag("zero_padding"),
          .a_type = ByName("a_dtype", kFp8Types, reader.Text("a_dtype")).value,
          .b_type = ByName("b_dtype", kFp8Types, reader.Text("b_dtype")).value,
          .d_type = ByName("d_dtype", kOutTypes, reader.Text("d_dtype")).value,
          .accumulate = reader.Flag("accumulate"),
          .num_sms = reader.Number("num_sms")};
}

/// @throws UnsupportedError  An extent, also of all groups together, is not from 1 to kMaxExtent; d
///     has more than 2^30 tiles; there are more groups than kMaxGroups; num_sms is not from 1, or
///     sm_limit not from 0, to kMaxSms. The message names it.
void ValidateProblem(const GemmProblem& problem);

}  // namespace fp8gemm
