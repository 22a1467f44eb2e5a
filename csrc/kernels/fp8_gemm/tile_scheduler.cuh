// SPDX-License-Identifier: Apache-2.0
// Which output tiles a CTA computes, in which order. Every role of the CTA walks the same sequence.
//
// Persistent: cluster i of C takes cluster tiles i, i + C, i + 2 C, ... of a raster order that
// keeps neighbours in time close in space, so that what one tile brought into L2 serves the next:
// the minor dimension is cut into bands of `raster_width` cluster tiles, and inside a band the
// minor index runs fastest. The last band may be narrower. Groups come one after the other, each
// with a raster of its own.
//
// A cluster computes adjacent tiles of one group. Where a dimension has an odd number of tiles, the
// second CTA of the last cluster gets a tile outside the group: its loads are zero-filled or
// unused and its stores clipped, so that multicast needs no special case.
#pragma once
#include <fp8_gemm/group_table.cuh>
#include <ptx/cluster.cuh>

namespace fp8gemm {

struct Tile {
  uint32_t row;        // first row of `a` and `d`
  uint32_t column;     // first column of `d`
  uint32_t b_row;      // first row of `b`
  uint32_t scale_row;  // 1d2d: first row of sfb_blocks that belongs to the tile's group
  uint32_t k_block;    // first K block
  uint32_t k_blocks;   // 0: the tile is only written, as zeros
  uint32_t d_row;      // first row in the tensor map of `d`
  // Counted from the tile's first row; may pass its last. Only for the kinds that need them.
  uint32_t valid_rows;  // rows that are products; the next ones, up to stored_rows, are zeros
  uint32_t stored_rows;
};

template <GemmConfig kConfig>
class TileScheduler {
 public:
  FP8GEMM_DEVICE TileScheduler(const GemmParams& params, const Smem<kConfig>& smem)
      : params_(params),
        groups_{smem.groups()},
        rank_(kConfig.cluster_size() > 1 ? ptx::cluster_ctarank() : 0),
        next_(ptx::block_idx() / kConfig.cluster_size()),
        stride_(ptx::grid_dim() / kConfig.cluster_size()) {}

  // Advances to the next tile of this CTA; false when there is none. One whole, converged warp.
  FP8GEMM_DEVICE bool next(Tile& tile) {
    bool found;
    if constexpr (kConfig.kind == GemmKind::kDense) {
      found = next_dense(tile);
    } else {
      found = next_grouped(tile);
    }
    next_ += stride_;
    return found;
  }

 private:
  using Table = GroupTable<kConfig>;

  FP8GEMM_DEVICE bool next_dense(Tile& tile) const {
    if (next_ >= params_.cluster_tiles_m * params_.cluster_tiles_n) return false;
    place(next_, tile);
    if constexpr (kConfig.split_k > 1) {
      const uint32_t share = ceil_div(params_.k_blocks, kConfig.split_k);
      tile.k_block = min(rank_ * share, params_.k_blocks);
      tile.k_blocks = min(share, params_.k_blocks - tile.k_block);
    }
    return true;
  }

  // Tile `index` of a matrix of cluster_tiles_m x cluster_tiles_n, from its first row on.
  FP8GEMM_DEVICE void place(uint32_t index, Tile& tile) const {
    const uint32_t band = params_.band_tiles.quotient(index);
    const uint32_t within = index - band * params_.band_tiles.divisor;
    const FastDivisor width =
        band < params_.whole_bands ? params_.raster_width : params_.last_band_width;
    const uint32_t major = width.quotient(within);
    place_at(band * params_.raster_width.divisor + within - major * width.divisor, major, tile);
  }

  FP8GEMM_DEVICE void place_at(uint32_t minor, uint32_t major, Tile& tile) const {
    const bool along_n = params_.raster_along_n != 0;
    const uint32_t m = (along_n ? major : minor) * kConfig.cluster_m + rank_ % kConfig.cluster_m;
    const uint32_t n = (along_n ? minor : major) * kConfig.cluster_n + rank_ % kConfig.cluster_n;
    tile.row = m * kConfig.block_m;
    tile.column = n * kConfig.block_n;
    tile.d_row = tile.row;
    tile.b_row = tile.column;
    tile.scale_row = 0;
    tile.k_block = 0;
    tile.k_blocks = params_.k_blocks;
  }

  // Of the kinds with groups: grouped_tiles.cuh, and a file for each kind.
  FP8GEMM_DEVICE bool next_grouped(Tile& tile) const;
  FP8GEMM_DEVICE bool next_contiguous(Tile& tile) const;
  FP8GEMM_DEVICE bool next_ragged(Tile& tile) const;
  FP8GEMM_DEVICE bool next_masked(Tile& tile) const;
  FP8GEMM_DEVICE bool next_k_grouped(Tile& tile) const;
  FP8GEMM_DEVICE void place(uint32_t index, uint32_t tiles_m, uint32_t tiles_n, Tile& tile) const;
  FP8GEMM_DEVICE void select_weights(uint32_t group, Tile& tile) const;

  const GemmParams& params_;
  const Table groups_;
  uint32_t rank_;
  uint32_t next_;
  uint32_t stride_;
};

}  // namespace fp8gemm
