// SPDX-License-Identifier: Apache-2.0
// A quantize kernel for the CPU, under its key.
#pragma once
#include <fp8_quantize/sm90_quantize.cuh>

#include <string>

#include "quantize/quantize_key.h"
#include "sim/registry.h"

namespace fp8gemm::sim {

template <QuantizeConfig kConfig>
void QuantizeEntry(const void* params) {
  sm90_quantize<kConfig>(*static_cast<const QuantizeParams*>(params));
}

// Name of what lies at `offset` of dynamic shared memory.
template <QuantizeConfig kConfig>
const char* DescribeQuantizeSmem(uint32_t offset) {
  if (offset >= quantize_smem_bytes(kConfig)) return "past the end";
  return kConfig.is_transposed() && offset >= amax_bytes(kConfig) ? "values" : "amax";
}

template <QuantizeConfig kConfig>
SimKernel MakeSimQuantizer() {
  static const std::string key = QuantizeKey(kConfig);
  return {.key = key.c_str(),
          .entry = &QuantizeEntry<kConfig>,
          .params_bytes = sizeof(QuantizeParams),
          .threads = kQuantizeThreads,
          .cluster = 1,
          .smem_bytes = quantize_smem_bytes(kConfig),
          .launch_registers = 65536 / kQuantizeThreads,
          .describe_smem = &DescribeQuantizeSmem<kConfig>};
}

}  // namespace fp8gemm::sim
