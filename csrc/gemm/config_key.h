// SPDX-License-Identifier: Apache-2.0
// The one text form of a configuration: in cache keys, kernel lookups, attributes and reports.
#pragma once
#include <string>

#include "shared/gemm_config.h"

namespace fp8gemm {

/// "1d2d", "1d2d_ragged", ...: scaling, and kind unless dense.
std::string FamilyName(const GemmConfig& config);

/// "1d2d.m128n160.w2.s5.c2x1.e4m3.e4m3.bf16" and then, where set, ".acc", ".split4", ".pdl": the
/// family, block_m and block_n, consumer warpgroups, stages, cluster_m x cluster_n, types of a, b
/// and d.
std::string ConfigKey(const GemmConfig& config);

/// Inverse of ConfigKey.
/// @throws UnsupportedError  Not a key, or a configuration that the kernels cannot run; the message
///     names the broken rule.
GemmConfig ParseConfigKey(const std::string& key);

}  // namespace fp8gemm
