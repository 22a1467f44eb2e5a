// SPDX-License-Identifier: Apache-2.0
// Configurations of the quantize kernels as text: "quantize_rows.bf16.e4m3.f32", with layouts rows,
// blocks, transposed, kgrouped, rows_transposed, rows_kgrouped, swiglu, geglu, gelu and rms_norm,
// and scales f32 or pow2.
#pragma once
#include <string>
#include <vector>

#include "jit/type_names.h"
#include "shared/quantize_config.h"

namespace fp8gemm {

/// In the order of their enumerations.
inline constexpr Named<QuantizeLayout> kQuantizeLayouts[] = {
    {QuantizeLayout::kRows, "rows", "rows", "fp8gemm::QuantizeLayout::kRows"},
    {QuantizeLayout::kBlocks, "blocks", "blocks", "fp8gemm::QuantizeLayout::kBlocks"},
    {QuantizeLayout::kTransposed, "transposed", "transposed",
     "fp8gemm::QuantizeLayout::kTransposed"},
    {QuantizeLayout::kKGrouped, "k_grouped", "kgrouped", "fp8gemm::QuantizeLayout::kKGrouped"},
    {QuantizeLayout::kRowsAndTransposed, "rows_and_transposed", "rows_transposed",
     "fp8gemm::QuantizeLayout::kRowsAndTransposed"},
    {QuantizeLayout::kRowsAndKGrouped, "rows_and_k_grouped", "rows_kgrouped",
     "fp8gemm::QuantizeLayout::kRowsAndKGrouped"},
    {QuantizeLayout::kSwiGLU, "swiglu", "swiglu", "fp8gemm::QuantizeLayout::kSwiGLU"},
    {QuantizeLayout::kGeGLU, "geglu", "geglu", "fp8gemm::QuantizeLayout::kGeGLU"},
    {QuantizeLayout::kGELU, "gelu", "gelu", "fp8gemm::QuantizeLayout::kGELU"},
    {QuantizeLayout::kRMSNorm, "rms_norm", "rms_norm", "fp8gemm::QuantizeLayout::kRMSNorm"},
};
inline constexpr Named<XType> kXTypes[] = {
    {XType::kBF16, "bfloat16", "bf16", "fp8gemm::XType::kBF16"},
    {XType::kF16, "float16", "f16", "fp8gemm::XType::kF16"},
    {XType::kF32, "float32", "f32", "fp8gemm::XType::kF32"},
    {XType::kE4M3, "float8_e4m3fn", "e4m3", "fp8gemm::XType::kE4M3"},
};
/// Whether scales are powers of two.
inline constexpr Named<bool> kScaleFormats[] = {
    {false, "float32", "f32", "false"},
    {true, "pow2", "pow2", "true"},
};
static_assert(IsInOrder(kQuantizeLayouts) && IsInOrder(kXTypes) && IsInOrder(kScaleFormats));

constexpr const Named<QuantizeLayout>& NamesOf(QuantizeLayout layout) {
  return kQuantizeLayouts[size_t(layout)];
}
constexpr const Named<XType>& NamesOf(XType type) { return kXTypes[size_t(type)]; }

/// The configuration of what attributes say.
/// @throws UnsupportedError  A name is not known.
QuantizeConfig NamedQuantizeConfig(const std::string& layout, const std::string& x_dtype,
                                   const std::string& dtype, const std::string& scale_format);

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
