// SPDX-License-Identifier: Apache-2.0
// Instantiates the quantize kernels for the CPU and registers them under their keys.
#include <array>
#include <utility>

#include "sim/kernels/quantize_kernel.h"

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

const KernelTable kTable = []<size_t... kIndex>(std::index_sequence<kIndex...>) {
  static const SimKernel kernels[] = {MakeSimQuantizer<kConfigs[kIndex]>()...};
  return KernelTable(kernels);
}(std::make_index_sequence<kConfigs.size()>());

}  // namespace
}  // namespace fp8gemm::sim
