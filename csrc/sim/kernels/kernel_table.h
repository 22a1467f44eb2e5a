// SPDX-License-Identifier: Apache-2.0
// Instantiates the kernels for the CPU and registers them under their configuration keys.
#pragma once
#include <fp8_gemm/sm90_fp8_gemm.cuh>

#include <string>
#include <utility>

#include "gemm/config_key.h"
#include "sim/kernels/simulated_configs.h"
#include "sim/registry.h"

namespace fp8gemm::sim {

template <GemmConfig kConfig>
void KernelEntry(const void* params) {
  sm90_fp8_gemm<kConfig>(*static_cast<const GemmParams*>(params));
}

// Name of what lies at `offset` of dynamic shared memory.
template <GemmConfig kConfig>
const char* DescribeSmem(uint32_t offset) {
  constexpr SmemLayout kLayout = make_smem_layout(kConfig);
  if (offset >= launch_smem_bytes(kConfig)) return "past the end";
  if (offset >= kLayout.groups) return "group table";
  if (offset >= kLayout.summed) return "summed barrier";
  if (offset >= kLayout.c_full) return "c_full barrier";
  if (offset >= kLayout.empty) return "empty barrier";
  if (offset >= kLayout.full) return "full barrier";
  if (offset >= kLayout.partials) return "partials";
  if (offset >= kLayout.sfb) return "sfb";
  if (offset >= kLayout.sfa) return "sfa";
  if (offset >= kLayout.b) return "b";
  if (offset >= kLayout.a) return "a";
  return "d";
}

// Registers a thread has when a CTA of `threads` shares the 64 K of an SM, in units of 8.
constexpr uint32_t LaunchRegisters(uint32_t threads) { return 65536 / threads / 8 * 8; }

template <GemmConfig kConfig>
SimKernel MakeSimKernel() {
  static const std::string key = ConfigKey(kConfig);
  return {.key = key.c_str(),
          .entry = &KernelEntry<kConfig>,
          .params_bytes = sizeof(GemmParams),
          .threads = kConfig.threads(),
          .cluster = kConfig.cluster_size(),
          .smem_bytes = launch_smem_bytes(kConfig),
          .launch_registers = LaunchRegisters(kConfig.threads()),
          .describe_smem = &DescribeSmem<kConfig>};
}

// Every `kNumParts`-th configuration, starting with `kPart`, so that parts compile in parallel.
template <size_t kPart, size_t kNumParts>
KernelTable MakeKernelTable() {
  constexpr size_t kCount = (kSimulatedConfigs.size - kPart + kNumParts - 1) / kNumParts;
  return []<size_t... kIndex>(std::index_sequence<kIndex...>) {
    static const SimKernel kernels[] = {
        MakeSimKernel<kSimulatedConfigs.configs[kPart + kIndex * kNumParts]>()...};
    return KernelTable(kernels);
  }(std::make_index_sequence<kCount>());
}

}  // namespace fp8gemm::sim
