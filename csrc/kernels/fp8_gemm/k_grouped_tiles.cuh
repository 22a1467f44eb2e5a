// SPDX-License-Identifier: Apache-2.0
// Groups along K: each has an output matrix of its own, and its own K blocks.
#pragma once
#include <fp8_gemm/tile_scheduler.cuh>

namespace fp8gemm {

template <GemmConfig kConfig>
FP8GEMM_DEVICE bool TileScheduler<kConfig>::next_k_grouped(Tile& tile) const {
  const uint32_t group = params_.tiles_together.quotient(next_);
  if (group >= params_.num_groups) return false;
  place(next_ - group * params_.tiles_together.divisor, tile);
  tile.k_block = group > 0 ? groups_.load(group - 1).extent_end : 0;
  tile.k_blocks = groups_.load(group).extent_end - tile.k_block;
  tile.stored_rows = tile.row < params_.m ? params_.m - tile.row : 0;
  tile.valid_rows = tile.stored_rows;
  tile.d_row = group * params_.m + tile.row;
  return true;
}

}  // namespace fp8gemm
