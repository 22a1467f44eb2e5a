// SPDX-License-Identifier: Apache-2.0
// Ragged groups: rows of one group follow those of the one before; past the last one come zeros.
#pragma once
#include <fp8_gemm/tile_scheduler.cuh>

namespace fp8gemm {

template <GemmConfig kConfig>
FP8GEMM_DEVICE bool TileScheduler<kConfig>::next_ragged(Tile& tile) const {
  const uint32_t tiles_n = params_.cluster_tiles_n;
  const uint32_t position = params_.tiles_together.quotient(next_);
  const uint32_t group = Table::find(params_.num_groups, position,
                                     [&](uint32_t g) { return groups_.load(g).tile_end; });
  const bool is_padding = group == params_.num_groups;  // past the last group: zeros
  typename Table::Entry before = {0, 0};
  if (group > 0) before = groups_.load(group - 1);
  const uint32_t row_end = is_padding ? params_.m : groups_.load(group).extent_end;
  const uint32_t rows = row_end - before.extent_end;
  const uint32_t tiles_m = ceil_div(rows, Table::kClusterRows);
  const uint32_t index = next_ - before.tile_end * tiles_n;
  if (is_padding && index >= tiles_m * tiles_n) return false;
  place(index, tiles_m, tiles_n, tile);
  if (is_padding) {
    tile.k_blocks = 0;
  } else {
    select_weights(group, tile);
  }
  tile.valid_rows = tile.row < rows ? rows - tile.row : 0;
  tile.stored_rows = tile.valid_rows;
  tile.row += before.extent_end;
  tile.d_row = tile.row;
  return true;
}

}  // namespace fp8gemm
