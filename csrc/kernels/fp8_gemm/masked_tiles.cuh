// SPDX-License-Identifier: Apache-2.0
// Masked groups: padded to a common capacity of rows, of which the first ones are valid.
#pragma once
#include <fp8_gemm/tile_scheduler.cuh>

namespace fp8gemm {

template <GemmConfig kConfig>
FP8GEMM_DEVICE bool TileScheduler<kConfig>::next_masked(Tile& tile) const {
  const uint32_t tiles_n = params_.cluster_tiles_n;
  uint32_t position = params_.tiles_together.quotient(next_);
  const uint32_t tiles_per_group = params_.cluster_tiles_m;
  uint32_t group = Table::find(params_.num_groups, position,
                               [&](uint32_t g) { return groups_.load(g).tile_end; });
  const bool is_padding = group == params_.num_groups;
  uint32_t first_tile = group > 0 ? groups_.load(group - 1).tile_end : 0;
  uint32_t skipped = 0;  // cluster tiles along M of the group that are not in this sequence
  if (is_padding) {
    // After the products come the tiles that hold only padding, group by group.
    if (params_.zero_padding == 0) return false;
    position -= first_tile;
    const uint32_t products = first_tile;
    group = Table::find(params_.num_groups, position, [&](uint32_t g) {
      return (g + 1) * tiles_per_group - groups_.load(g).tile_end;
    });
    if (group == params_.num_groups) return false;
    const uint32_t before = group > 0 ? groups_.load(group - 1).tile_end : 0;
    skipped = groups_.load(group).tile_end - before;
    first_tile = products + group * tiles_per_group - before;
  }
  const uint32_t valid = groups_.load(group).extent_end;
  const uint32_t tiles_m =
      is_padding ? tiles_per_group - skipped : ceil_div(valid, Table::kClusterRows);
  place(next_ - first_tile * tiles_n, tiles_m, tiles_n, tile);
  select_weights(group, tile);
  tile.row += skipped * Table::kClusterRows;
  if (is_padding) tile.k_blocks = 0;
  const uint32_t rows = params_.zero_padding != 0 ? params_.group_rows : valid;
  tile.valid_rows = tile.row < valid ? valid - tile.row : 0;
  tile.stored_rows = tile.row < rows ? rows - tile.row : 0;
  tile.row += group * params_.group_rows;
  tile.d_row = tile.row;
  return true;
}

}  // namespace fp8gemm
