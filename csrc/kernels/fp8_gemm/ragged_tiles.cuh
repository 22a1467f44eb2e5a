// SPDX-License-Identifier: Apache-2.0
// Ragged groups: rows of one group follow those of the one before; past the last one come zeros.
#pragma once
#include <fp8_gemm/tile_scheduler.cuh>

namespace fp8gemm {

template <GemmConfig kConfig>
FP8GEMM_DEVICE bool TileScheduler<kConfig>::next_ragged(Tile& tile) const {
  const uint32_t tiles_n = params_.cluster_tiles_n;
  const uint32_t position = next_ / tiles_n;
  const uint32_t group = Table::find(params_.num_groups, position,
                                     [&](uint32_t g) { return groups_.load(g).tile_end; });
  typename Table::Entry before = {0, 0};
  if (group > 0) before = groups_.load(group - 1);
  const uint32_t index = next_ - before.tile_end * tiles_n;
  uint32_t rows;
  if (group < params_.num_groups) {
    rows = groups_.load(group).extent_end - before.extent_end;
    place(index, ceil_div(rows, kClusterRows), tiles_n, tile);
    select_weights(group, tile);
  } else {
    rows = params_.m - before.extent_end;  // past the last group: zeros
    const uint32_t tiles_m = ceil_div(rows, kClusterRows);
    if (index >= tiles_m * tiles_n) return false;
    place(index, tiles_m, tiles_n, tile);
    tile.k_blocks = 0;
  }
  tile.valid_rows = tile.row < rows ? rows - tile.row : 0;
  tile.stored_rows = tile.valid_rows;
  tile.row += before.extent_end;
  tile.d_row = tile.row;
  return true;
}

}  // namespace fp8gemm
