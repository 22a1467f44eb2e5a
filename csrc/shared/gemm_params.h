// SPDX-License-Identifier: Apache-2.0
// GemmParams: the single argument of the kernels, passed by value as a __grid_constant__.
#pragma once
#include <shared/fast_divisor.h>
#include <shared/types.h>

namespace fp8gemm {

// CUtensorMap as device code sees it: 128 opaque bytes that only TMA instructions read.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

struct GemmParams {
  TensorMap a;              // (a rows, k) fp8, box (block_m / cluster_n, 128), 128B swizzle
  TensorMap b;              // (groups * n, k) fp8, box (block_n / cluster_m, 128), 128B swizzle
  TensorMap sfa;            // (k blocks, a rows) f32, box (1, sfa_box_scales), no swizzle
  TensorMap sfb;            // 1d1d: (k blocks, n) f32, box (1, block_n), no swizzle
  TensorMap d;              // (d rows, n) output, box (d_box_rows, d_box_columns)
  TensorMap c;              // as d; read only when the configuration accumulates
  const float* sfb_blocks;  // 1d2d: (groups, ceil(n / 128), k_blocks) f32, row-major
  void* d_base;             // d again, for tiles that end before their last row
  uint64_t d_pitch_bytes;   // from one row of d to the next

  // What divides the work, by kind: ragged and K-grouped: group_sizes (groups); masked: masked_m
  // (groups); contiguous: group_ids (m). Trusted for nothing: values out of range are clamped.
  const int32_t* group_data;
  uint32_t num_groups;
  uint32_t group_rows;    // masked: rows of `a` and `d` that each group has
  uint32_t zero_padding;  // masked: 1 if rows past masked_m must be written as zeros

  uint32_t m;  // rows of one output matrix; ragged and contiguous: of all groups
  uint32_t n;
  uint32_t k_blocks;         // ceil(k / 128); K-grouped: of all groups
  uint32_t cluster_tiles_m;  // output tiles in units of a whole cluster; of one group if masked
  uint32_t cluster_tiles_n;
  // Cluster tiles that follow each other in one group: K-grouped: all of them; masked and ragged:
  // those along N.
  FastDivisor tiles_together;
  uint32_t raster_along_n;   // 1: the minor dimension, which is cut into bands, is N; 0: it is M
  FastDivisor raster_width;  // cluster tiles of the minor dimension that are walked together
  // Of a matrix of cluster_tiles_m x cluster_tiles_n. Other sizes come from the groups.
  FastDivisor band_tiles;       // cluster tiles of a band
  FastDivisor last_band_width;  // of the band after the whole ones; unused if there is none
  uint32_t whole_bands;
};

}  // namespace fp8gemm
