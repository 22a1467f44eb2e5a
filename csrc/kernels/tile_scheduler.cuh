// SPDX-License-Identifier: Apache-2.0
// Which output tiles a CTA computes, in which order. Every role of the CTA walks the same sequence.
//
// Persistent: cluster i of C takes cluster tiles i, i + C, i + 2 C, ... of a raster order that keeps
// neighbours in time close in space, so that what one tile brought into L2 serves the next: the
// minor dimension is cut into groups of `raster_width` cluster tiles, and inside a group the minor
// index runs fastest. The last group may be narrower.
//
// A cluster computes adjacent tiles. Where a dimension has an odd number of tiles, the second CTA of
// the last cluster gets a tile outside the matrix: its loads are zero-filled and its stores clipped,
// so that multicast needs no special case.
#pragma once
#include <ptx/cluster.cuh>
#include <shared/gemm_config.h>
#include <shared/gemm_params.h>

namespace fp8gemm {

struct Tile {
  uint32_t row;     // first row of `d`
  uint32_t column;  // first column of `d`
};

template <GemmConfig kConfig>
class TileScheduler {
 public:
  FP8GEMM_DEVICE explicit TileScheduler(const GemmParams& params)
      : params_(params),
        rank_(kConfig.cluster_size() > 1 ? ptx::cluster_ctarank() : 0),
        next_(ptx::block_idx() / kConfig.cluster_size()),
        stride_(ptx::grid_dim() / kConfig.cluster_size()) {}

  // Advances to the next tile of this CTA; false when there is none.
  FP8GEMM_DEVICE bool next(Tile& tile) {
    if (next_ >= params_.cluster_tiles_m * params_.cluster_tiles_n) return false;
    const bool along_n = params_.raster_along_n != 0;
    const uint32_t minor_tiles = along_n ? params_.cluster_tiles_n : params_.cluster_tiles_m;
    const uint32_t major_tiles = along_n ? params_.cluster_tiles_m : params_.cluster_tiles_n;
    const uint32_t group_tiles = params_.raster_width * major_tiles;
    const uint32_t group = next_ / group_tiles;
    const uint32_t within = next_ % group_tiles;
    const uint32_t first_minor = group * params_.raster_width;
    const uint32_t width = min(params_.raster_width, minor_tiles - first_minor);
    const uint32_t minor = first_minor + within % width;
    const uint32_t major = within / width;
    const uint32_t m = (along_n ? major : minor) * kConfig.cluster_m + rank_ % kConfig.cluster_m;
    const uint32_t n = (along_n ? minor : major) * kConfig.cluster_n + rank_ % kConfig.cluster_n;
    tile = {m * kConfig.block_m, n * kConfig.block_n};
    next_ += stride_;
    return true;
  }

 private:
  const GemmParams& params_;
  uint32_t rank_;
  uint32_t next_;
  uint32_t stride_;
};

}  // namespace fp8gemm
