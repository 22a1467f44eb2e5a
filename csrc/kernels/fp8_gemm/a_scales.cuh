// SPDX-License-Identifier: Apache-2.0
// Scales of A, which TMA brings with a tile's K blocks: from the tile's first row on, or from up to
// three rows before it where the tile can begin at any row (see sfa_scales).
#pragma once
#include <fp8_gemm/tile_scheduler.cuh>
#include <ptx/tma.cuh>

namespace fp8gemm {

// Scales in shared memory that come before the tile's.
template <GemmConfig kConfig>
FP8GEMM_DEVICE uint32_t scales_before(const Tile& tile) {
  return kConfig.begins_at_any_row() ? tile.row % kScaleAlignment : 0;
}

// Loads the scales of A of K block `kb`.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void load_a_scales(const TensorMap* map, uint32_t bar, uint32_t dst,
                                  const Tile& tile, uint32_t kb) {
  constexpr uint32_t kScales = sfa_box_scales(kConfig);
  const uint32_t first = tile.row - scales_before<kConfig>(tile);
  FP8GEMM_UNROLL
  for (uint32_t box = 0; box < sfa_boxes(kConfig); ++box) {
    ptx::cp_async_bulk_tensor_2d_g2s(map, bar, dst + box * kScales * sizeof(float),
                                     first + box * kScales, kb);
  }
}

}  // namespace fp8gemm
