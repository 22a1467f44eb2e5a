// SPDX-License-Identifier: Apache-2.0
// Runs a grid: its clusters one after the other, on the calling thread.
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "sim/options.h"
#include "sim/registry.h"

namespace fp8gemm::sim {

struct GridLaunch {
  const SimKernel* kernel;
  const void* params;  // 64-aligned copy of the kernel's parameter
  uint32_t grid;       // CTAs, a multiple of the kernel's cluster
  uint32_t smem_bytes;
  bool is_dependent;                       // launched with programmatic stream serialization
  uint64_t mark;                           // of the launch, for:
  bool (*was_interrupted)(uint64_t mark);  // whether the launch is to stop
};

struct GridResult {
  bool ok;
  std::string report;  // empty if ok
};

/// Not reentrant: callers serialize. `stats` is added to.
GridResult RunGrid(const GridLaunch& launch, const SimOptions& options,
                   std::span<const SimRange> ranges, SimStats& stats);

}  // namespace fp8gemm::sim
