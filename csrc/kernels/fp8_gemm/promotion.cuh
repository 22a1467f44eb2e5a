// SPDX-License-Identifier: Apache-2.0
// Promotion: adding the tensor core's partial sums of one K block, times their scales, to float32
// accumulators. The tensor core keeps about 14 bits, so 128 of K is as long as it may sum alone.
#pragma once
#include <fp8_gemm/pipeline.cuh>
#include <ptx/warp.cuh>

namespace fp8gemm {

// Scales of one K block as a consumer thread needs them. `read` is called while the tensor core
// works, so that it costs no time; `row` is the place of the scale of the thread's first fragment
// row, the second is 8 below.
template <GemmConfig kConfig, Scaling kScaling = kConfig.scaling>
struct BlockScales;

// 1x128 for A, 128x128 for B: one scale for each fragment row of each row slice and each of the one
// or two column blocks of the tile.
template <GemmConfig kConfig>
struct BlockScales<kConfig, Scaling::k1D2D> {
  static constexpr uint32_t kBlocks = kConfig.scale_blocks_n();
  float product[kConfig.row_slices()][2][kBlocks];

  FP8GEMM_DEVICE void read(const Smem<kConfig>& smem, uint32_t stage, uint32_t row) {
    float sfb[kBlocks];
    if constexpr (kBlocks == 1) {
      sfb[0] = ptx::ld_shared_f32(smem.sfb(stage));
    } else {
      ptx::ld_shared_v2_f32(smem.sfb(stage), sfb[0], sfb[1]);
    }
    FP8GEMM_UNROLL
    for (uint32_t slice = 0; slice < kConfig.row_slices(); ++slice) {
      FP8GEMM_UNROLL
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t scale_row = row + slice * kMmaM + half * 8;
        const float sfa = ptx::ld_shared_f32(smem.sfa(stage) + scale_row * sizeof(float));
        FP8GEMM_UNROLL
        for (uint32_t i = 0; i < kBlocks; ++i) product[slice][half][i] = sfa * sfb[i];
      }
    }
  }

  // accum += scale * partial. Tiles start at multiples of block_n, so the column where the second
  // scale block begins is a multiple of gcd(block_n, 128) between that and 128: columns are handled
  // in chunks of this width, and only chunks that can lie on either side need a select.
  FP8GEMM_DEVICE void promote(const float (&partial)[kConfig.block_n / 2], uint32_t slice,
                              uint32_t first_block_columns,
                              float (&accum)[kConfig.block_n / 2]) const {
    constexpr uint32_t kChunk = gcd(kConfig.block_n, kScaleBlockN);
    FP8GEMM_UNROLL
    for (uint32_t chunk = 0; chunk < kConfig.block_n; chunk += kChunk) {
      float scale[2];
      FP8GEMM_UNROLL
      for (uint32_t half = 0; half < 2; ++half) {
        const float (&scales)[kBlocks] = product[slice][half];
        if (kBlocks == 1 || chunk == 0) {
          scale[half] = scales[0];
        } else if (chunk >= kScaleBlockN) {
          scale[half] = scales[kBlocks - 1];
        } else {
          scale[half] = chunk < first_block_columns ? scales[0] : scales[kBlocks - 1];
        }
      }
      FP8GEMM_UNROLL
      for (uint32_t i = chunk / 2; i < (chunk + kChunk) / 2; ++i) {
        accum[i] += scale[(i >> 1) & 1] * partial[i];
      }
    }
  }
};

}  // namespace fp8gemm
