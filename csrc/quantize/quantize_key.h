// SPDX-License-Identifier: Apache-2.0
// Configurations of the quantize kernels as text: "quantize_rows.bf16.e4m3.f32", with layouts rows,
// blocks, transposed, kgrouped, rows_transposed, rows_kgrouped, swiglu, geglu, gelu and rms_norm,
// and scales f32 or pow2.
#pragma once
#include <string>
#include <vector>

#include "shared/quantize_config.h"

namespace fp8gemm {

/// "quantize_rows", the part of a key that names the layout.
std::string QuantizeFamily(const QuantizeConfig& config);

std::string QuantizeKey(const QuantizeConfig& config);

/// Whether `key` is meant for a quantize kernel rather than for a GEMM.
bool IsQuantizeKey(const std::string& key);

/// @throws UnsupportedError  Not the key of a quantize kernel.
QuantizeConfig ParseQuantizeKey(const std::string& key);

/// Every quantize kernel, in a fixed order.
std::vector<QuantizeConfig> AllQuantizeConfigs();

}  // namespace fp8gemm
