// SPDX-License-Identifier: Apache-2.0
// GemmParams: the single argument of the kernels, passed by value as a __grid_constant__.
#pragma once
#include <shared/types.h>

namespace fp8gemm {

// CUtensorMap as device code sees it: 128 opaque bytes that only TMA instructions read.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

struct GemmParams {
  TensorMap a;    // (m, k) fp8, box (block_m / cluster_n, 128), 128B swizzle
  TensorMap b;    // (n, k) fp8, box (block_n / cluster_m, 128), 128B swizzle
  TensorMap sfa;  // (k_blocks, m) f32, box (1, block_m), no swizzle
  TensorMap d;    // (m, n) output, box (min(block_m, 64), swizzle columns)
  TensorMap c;    // as d; read only when the configuration accumulates
  const float* sfb;  // (ceil(n / 128), k_blocks) f32, row-major
  uint32_t m;
  uint32_t n;
  uint32_t k_blocks;          // ceil(k / 128)
  uint32_t cluster_tiles_m;   // output tiles in units of a whole cluster
  uint32_t cluster_tiles_n;
  uint32_t raster_width;      // cluster tiles of the minor dimension that are walked together
  uint32_t raster_along_n;    // 1: the minor (grouped) dimension is N; 0: it is M
};

}  // namespace fp8gemm
