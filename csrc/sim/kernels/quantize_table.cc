// SPDX-License-Identifier: Apache-2.0
// Instantiates the quantise kernels for the CPU and registers them under their keys.
#include <sm90_quantize.cuh>

#include <array>
#include <string>
#include <utility>

#include "quantize/quantize_key.h"
#include "sim/registry.h"

namespace fp8gemm::sim {
namespace {

constexpr size_t CountConfigs() {
  size_t count = 0;
  for_each_quantizer([&](const QuantizeConfig&) { ++count; });
  return count;
}

constexpr auto kConfigs = [] {
  std::array<QuantizeConfig, CountConfigs()> configs{};
  size_t count = 0;
  for_each_quantizer([&](const QuantizeConfig& config) { configs[count++] = config; });
  return configs;
}();

template <QuantizeConfig kConfig>
void KernelEntry(const void* params) {
  sm90_quantize<kConfig>(*static_cast<const QuantizeParams*>(params));
}

// Name of what lies at `offset` of dynamic shared memory.
template <QuantizeConfig kConfig>
const char* DescribeSmem(uint32_t offset) {
  if (offset >= quantize_smem_bytes(kConfig)) return "past the end";
  return kConfig.is_transposed() && offset >= kAmaxBytes ? "values" : "amax";
}

template <QuantizeConfig kConfig>
SimKernel MakeSimKernel() {
  static const std::string key = QuantizeKey(kConfig);
  return {.key = key.c_str(),
          .entry = &KernelEntry<kConfig>,
          .params_bytes = sizeof(QuantizeParams),
          .threads = kQuantizeThreads,
          .cluster = 1,
          .smem_bytes = quantize_smem_bytes(kConfig),
          .launch_registers = 65536 / kQuantizeThreads,
          .describe_smem = &DescribeSmem<kConfig>};
}

const KernelTable kTable = []<size_t... kIndex>(std::index_sequence<kIndex...>) {
  static const SimKernel kernels[] = {MakeSimKernel<kConfigs[kIndex]>()...};
  return KernelTable(kernels);
}(std::make_index_sequence<kConfigs.size()>());

}  // namespace
}  // namespace fp8gemm::sim
