// SPDX-License-Identifier: Apache-2.0
// Contiguous groups: a group id for each row, groups start at multiples of kContiguousAlignment.
#pragma once
#include <fp8_gemm/tile_scheduler.cuh>

namespace fp8gemm {

template <GemmConfig kConfig>
FP8GEMM_DEVICE bool TileScheduler<kConfig>::next_contiguous(Tile& tile) const {
  if (!next_dense(tile)) return false;
  // A group starts at a multiple of the alignment, so the first row of a tile tells its group.
  const int32_t loaded =
      tile.row < params_.m ? ptx::ld_global_s32(params_.group_data + tile.row) : -1;
  // The same in all lanes. The shuffle tells the compiler, which then keeps descriptors uniform.
  const auto id = static_cast<int32_t>(ptx::shfl_sync_idx(static_cast<uint32_t>(loaded), 0));
  const bool has_group = id >= 0 && static_cast<uint32_t>(id) < params_.num_groups;
  if (has_group) {
    select_weights(id, tile);
  } else {
    tile.k_blocks = 0;
  }
  tile.stored_rows = tile.row < params_.m ? params_.m - tile.row : 0;
  tile.valid_rows = tile.stored_rows;  // single rows are checked by their id
  return true;
}

}  // namespace fp8gemm
