// SPDX-License-Identifier: Apache-2.0
// Emits the configuration with designated initializers, so that a field added to GemmConfig cannot
// silently shift the others.
#include "gemm/kernel_source.h"

#include "gemm/config_key.h"
#include "gemm/kinds.h"
#include "jit/type_names.h"
#include "shared/smem_layout.h"

namespace fp8gemm {
namespace {

std::string Field(const char* name, uint32_t value) {
  return std::string("    .") + name + " = " + std::to_string(value) + ",\n";
}

std::string Field(const char* name, const char* value) {
  return std::string("    .") + name + " = " + value + ",\n";
}

std::string KernelName(const GemmConfig& config) { return "sm90_fp8_gemm_" + FamilyName(config); }

std::string SourceText(const GemmConfig& config) {
  const std::string fields =
      Field("kind", TraitsOf(config.kind).literal) +
      Field("scaling", NamesOf(config.scaling).literal) + Field("block_m", config.block_m) +
      Field("block_n", config.block_n) + Field("num_consumers", config.num_consumers) +
      Field("num_stages", config.num_stages) + Field("cluster_m", config.cluster_m) +
      Field("cluster_n", config.cluster_n) + Field("split_k", config.split_k) +
      Field("a_type", NamesOf(config.a_type).literal) +
      Field("b_type", NamesOf(config.b_type).literal) +
      Field("d_type", NamesOf(config.d_type).literal) +
      Field("accumulate", config.accumulate ? "true" : "false") +
      Field("pdl", config.pdl ? "true" : "false");
  return "#define FP8GEMM_ONLY_N " + std::to_string(config.block_n) +
         "\n"
         "#include <fp8_gemm/sm90_fp8_gemm.cuh>\n"
         "extern \"C\" __global__ void __launch_bounds__(" +
         std::to_string(config.threads()) + ", 1)\n" + KernelName(config) +
         "(const __grid_constant__ fp8gemm::GemmParams params) {\n"
         "  fp8gemm::sm90_fp8_gemm<fp8gemm::GemmConfig{\n" +
         fields + "  }>(params);\n}\n";
}

}  // namespace

KernelSource GemmKernel(const GemmConfig& config) {
  return {.key = ConfigKey(config),
          .name = KernelName(config),
          .text = SourceText(config),
          .threads = config.threads(),
          .smem_bytes = launch_smem_bytes(config),
          .cluster = config.cluster_size()};
}

}  // namespace fp8gemm
