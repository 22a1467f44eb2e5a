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

// As `place(index, tile)`, of a matrix of `tiles_m` x `tiles_n`, which a group's size determines:
// the host knows no reciprocals.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void TileScheduler<kConfig>::place(uint32_t index, uint32_t tiles_m,
                                                  uint32_t tiles_n, Tile& tile) const {
  const bool along_n = params_.raster_along_n != 0;
  const uint32_t raster_width = params_.raster_width.divisor;
  const uint32_t band_tiles = raster_width * (along_n ? tiles_m : tiles_n);
  const uint32_t first_minor = index / band_tiles * raster_width;
  const uint32_t within = index % band_tiles;
  const uint32_t width = min(raster_width, (along_n ? tiles_n : tiles_m) - first_minor);
  place_at(first_minor + within % width, within / width, tile);
}

// Makes `tile` one of group `group`.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void TileScheduler<kConfig>::select_weights(uint32_t group, Tile& tile) const {
  tile.b_row += group * params_.n;
  tile.scale_row = group * ceil_div(params_.n, kScaleBlockN);
}

}  // namespace fp8gemm
