// SPDX-License-Identifier: Apache-2.0
// Promotion where both operands have scales per 1x128, as weight gradients do.
#pragma once
#include <fp8_gemm/promotion.cuh>

namespace fp8gemm {

// 1x128 for both: one scale for each fragment row and each fragment column.
template <GemmConfig kConfig>
struct BlockScales<kConfig, Scaling::k1D1D> {
  float row_scale[kConfig.row_slices()][2];
  float column_scale[kConfig.block_n / 4];

  FP8GEMM_DEVICE void read(const Smem<kConfig>& smem, uint32_t stage, uint32_t row) {
    FP8GEMM_UNROLL
    for (uint32_t slice = 0; slice < kConfig.row_slices(); ++slice) {
      FP8GEMM_UNROLL
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t scale_row = row + slice * kMmaM + half * 8;
        row_scale[slice][half] = ptx::ld_shared_f32(smem.sfa(stage) + scale_row * sizeof(float));
      }
    }
    const uint32_t base = smem.sfb(stage) + 2 * (ptx::lane_idx() % 4) * sizeof(float);
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < kConfig.block_n / 4; i += 2) {
      ptx::ld_shared_v2_f32(base + 4 * i * sizeof(float), column_scale[i], column_scale[i + 1]);
    }
  }

  FP8GEMM_DEVICE void promote(const float (&partial)[kConfig.block_n / 2], uint32_t slice, uint32_t,
                              float (&accum)[kConfig.block_n / 2]) const {
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < kConfig.block_n / 2; ++i) {
      const float scale = row_scale[slice][(i >> 1) & 1] * column_scale[(i >> 2) * 2 + (i & 1)];
      accum[i] += scale * partial[i];
    }
  }
};

}  // namespace fp8gemm
