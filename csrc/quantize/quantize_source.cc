// SPDX-License-Identifier: Apache-2.0
// Emits the configuration with designated initializers, as gemm/kernel_source.cc does.
#include "quantize/quantize_source.h"

#include "jit/type_names.h"
#include "quantize/quantize_key.h"

namespace fp8gemm {
namespace {

// Keeps ptxas from spilling to reach an occupancy that bandwidth does not need.
constexpr int kMinCtasPerSm = 2;

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
      "    .layout = " + NamesOf(config.layout).literal + ",\n"
      "    .x_type = " + NamesOf(config.x_type).literal + ",\n"
      "    .type = " + NamesOf(config.type).literal + ",\n"
      "    .pow2 = " + kScaleFormats[size_t{config.pow2}].literal + ",\n"
      "  }>(params);\n}\n";
  // clang-format on
  return {.key = QuantizeKey(config),
          .name = name,
          .text = text,
          .threads = kQuantizeThreads,
          .smem_bytes = quantize_smem_bytes(config)};
}

}  // namespace fp8gemm
