// SPDX-License-Identifier: Apache-2.0
// Tiles of the kinds with groups, and what these kinds share.
#pragma once
#include <fp8_gemm/contiguous_tiles.cuh>
#include <fp8_gemm/k_grouped_tiles.cuh>
#include <fp8_gemm/masked_tiles.cuh>
#include <fp8_gemm/ragged_tiles.cuh>
#include <fp8_gemm/tile_scheduler.cuh>

namespace fp8gemm {

template <GemmConfig kConfig>
FP8GEMM_DEVICE bool TileScheduler<kConfig>::next_grouped(Tile& tile) const {
  if constexpr (kConfig.kind == GemmKind::kContiguous) {
    return next_contiguous(tile);
  } else if constexpr (kConfig.kind == GemmKind::kRagged) {
    return next_ragged(tile);
  } else if constexpr (kConfig.kind == GemmKind::kMasked) {
    return next_masked(tile);
  } else {
    return next_k_grouped(tile);
  }
}

// Makes `tile` one of group `group`.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void TileScheduler<kConfig>::select_weights(uint32_t group, Tile& tile) const {
  tile.b_row += group * params_.n;
  tile.scale_row = group * ceil_div(params_.n, kScaleBlockN);
}

}  // namespace fp8gemm
