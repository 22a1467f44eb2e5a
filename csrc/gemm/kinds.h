// SPDX-License-Identifier: Apache-2.0
// The kinds of GEMM as one table: their names, what divides their work, which rows they have.
#pragma once
#include "jit/type_names.h"
#include "shared/gemm_config.h"

namespace fp8gemm {

/// What the array that divides the work holds (GemmParams::group_data).
enum class GroupData {
  kNone,      // there is no such array
  kPerGroup,  // an int32 for each group
  kPerRow,    // an int32 for each row of `a`
};

struct KindTraits {
  GemmKind value;
  const char* name;     // in attributes, messages and Python
  const char* suffix;   // in keys of configurations, after the scaling
  const char* literal;  // in the text of a kernel
  GroupData group_data;
  bool has_group_rows = false;     // each group has m rows of `a`
  bool has_group_weights = false;  // each group has a matrix b of its own
  bool has_group_results = false;  // each group has an output matrix of m rows
  bool has_1d2d = false;
  bool has_1d1d = false;
  bool accumulates = false;
};

/// In the order of GemmKind.
// clang-format off: the names of a kind, then its traits
inline constexpr KindTraits kKinds[] = {
    {.value = GemmKind::kDense, .name = "dense", .suffix = "",
     .literal = "fp8gemm::GemmKind::kDense", .group_data = GroupData::kNone,
     .has_1d2d = true, .has_1d1d = true, .accumulates = true},
    {.value = GemmKind::kRagged, .name = "ragged", .suffix = "_ragged",
     .literal = "fp8gemm::GemmKind::kRagged", .group_data = GroupData::kPerGroup,
     .has_group_weights = true, .has_1d2d = true},
    {.value = GemmKind::kContiguous, .name = "contiguous", .suffix = "_contiguous",
     .literal = "fp8gemm::GemmKind::kContiguous", .group_data = GroupData::kPerRow,
     .has_group_weights = true, .has_1d2d = true},
    {.value = GemmKind::kMasked, .name = "masked", .suffix = "_masked",
     .literal = "fp8gemm::GemmKind::kMasked", .group_data = GroupData::kPerGroup,
     .has_group_rows = true, .has_group_weights = true, .has_group_results = true,
     .has_1d2d = true},
    {.value = GemmKind::kKGrouped, .name = "k_grouped", .suffix = "_kgrouped",
     .literal = "fp8gemm::GemmKind::kKGrouped", .group_data = GroupData::kPerGroup,
     .has_group_results = true, .has_1d1d = true, .accumulates = true},
};
// clang-format on
static_assert(IsInOrder(kKinds));

constexpr const KindTraits& TraitsOf(GemmKind kind) { return kKinds[static_cast<int>(kind)]; }

constexpr bool HasScaling(const KindTraits& traits, Scaling scaling) {
  return scaling == Scaling::k1D1D ? traits.has_1d1d : traits.has_1d2d;
}

}  // namespace fp8gemm
