// SPDX-License-Identifier: Apache-2.0
// Emits the configuration with designated initializers, as gemm/kernel_source.cc does.
#include "quantize/quantize_source.h"

#include "jit/type_names.h"
#include "quantize/quantize_key.h"

namespace fp8gemm {
namespace {

// Keeps ptxas from spilling to reach an occupancy that bandwidth does not need.
constexpr int kMinCtasPerSm = 2;

const char* Literal(QuantizeLayout layout) {
  switch (layout) {
    case QuantizeLayout::kRows: return "fp8gemm::QuantizeLayout::kRows";
    case QuantizeLayout::kBlocks: return "fp8gemm::QuantizeLayout::kBlocks";
    case QuantizeLayout::kTransposed: return "fp8gemm::QuantizeLayout::kTransposed";
    case QuantizeLayout::kKGrouped: return "fp8gemm::QuantizeLayout::kKGrouped";
    case QuantizeLayout::kRowsAndTransposed: return "fp8gemm::QuantizeLayout::kRowsAndTransposed";
    case QuantizeLayout::kRowsAndKGrouped: return "fp8gemm::QuantizeLayout::kRowsAndKGrouped";
    case QuantizeLayout::kSwiGLU: return "fp8gemm::QuantizeLayout::kSwiGLU";
    case QuantizeLayout::kGeGLU: return "fp8gemm::QuantizeLayout::kGeGLU";
    case QuantizeLayout::kGELU: return "fp8gemm::QuantizeLayout::kGELU";
    case QuantizeLayout::kRMSNorm: return "fp8gemm::QuantizeLayout::kRMSNorm";
  }
  return "";
}

const char* Literal(XType type) {
  switch (type) {
    case XType::kBF16: return "fp8gemm::XType::kBF16";
    case XType::kF16: return "fp8gemm::XType::kF16";
    case XType::kF32: return "fp8gemm::XType::kF32";
    case XType::kE4M3: return "fp8gemm::XType::kE4M3";
  }
  return "";
}

}  // namespace

KernelSource QuantizeKernel(const QuantizeConfig& config) {
  const std::string name = "sm90_" + QuantizeFamily(config);
  // clang-format off: a line of text a line
  const std::string text =
      "#include <fp8_quantize/sm90_quantize.cuh>\n"
      "extern \"C\" __global__ void __launch_bounds__(" +
      std::to_string(kQuantizeThreads) + ", " + std::to_string(kMinCtasPerSm) + ")\n" + name +
      "(const __grid_constant__ fp8gemm::QuantizeParams params) {\n"
      "  fp8gemm::sm90_quantize<fp8gemm::QuantizeConfig{\n"
      "    .layout = " + Literal(config.layout) + ",\n"
      "    .x_type = " + Literal(config.x_type) + ",\n"
      "    .type = " + Fp8TypeLiteral(config.type) + ",\n"
      "    .pow2 = " + (config.pow2 ? "true" : "false") + ",\n"
      "  }>(params);\n}\n";
  // clang-format on
  return {.key = QuantizeKey(config),
          .name = name,
          .text = text,
          .threads = kQuantizeThreads,
          .smem_bytes = quantize_smem_bytes(config)};
}

}  // namespace fp8gemm
