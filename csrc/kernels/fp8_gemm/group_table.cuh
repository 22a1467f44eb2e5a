// SPDX-License-Identifier: Apache-2.0
// Where each group begins: one warp of every CTA works it out from sizes only the device knows.
//
// Entry g holds the end of group g in two units: `extent_end` (rows; K blocks when groups lie along
// K) and `tile_end` (cluster tiles along M). Both are running sums, so the group of a tile is found
// by counting ends. Sizes are clamped: a negative one counts as 0, and what passes the end of the
// buffers is cut off.
#pragma once
#include <fp8_gemm/pipeline.cuh>
#include <ptx/global.cuh>
#include <ptx/warp.cuh>
#include <shared/gemm_params.h>
#include <warp_scan.cuh>

namespace fp8gemm {

template <GemmConfig kConfig>
struct GroupTable {
  // Rows of `d` that one cluster covers.
  static constexpr uint32_t kClusterRows = kConfig.block_m * kConfig.cluster_m;
  uint32_t base;  // shared-memory address

  struct Entry {
    uint32_t extent_end;
    uint32_t tile_end;
  };

  FP8GEMM_DEVICE Entry load(uint32_t group) const {
    Entry entry;
    ptx::ld_shared_v2_u32(extent_address(group), entry.extent_end, entry.tile_end);
    return entry;
  }

  // Fills the table. One whole warp; the CTA must synchronize before any other warp reads it. Each
  // lane sums a segment of the groups, with several loads on their way at a time; then two scans do
  // for however many groups there are. Until it is known where a segment begins, an entry holds the
  // extent and the tiles of its own group.
  FP8GEMM_DEVICE void build(const GemmParams& params) const {
    constexpr bool kAlongK = kConfig.kind == GemmKind::kKGrouped;
    constexpr bool kMasked = kConfig.kind == GemmKind::kMasked;
    constexpr uint32_t kNoLimit = 0x7fffffff;
    constexpr uint32_t kBatch = 4;
    const uint32_t size_limit = kMasked ? params.group_rows : kAlongK ? params.k_blocks : params.m;
    const uint32_t step = segment(params.num_groups);
    const uint32_t first = min(ptx::lane_idx() * step, params.num_groups);
    const uint32_t last = min(first + step, params.num_groups);

    uint32_t extents = 0;
    for (uint32_t batch = first; batch < last; batch += kBatch) {
      int32_t given[kBatch];
      FP8GEMM_UNROLL
      for (uint32_t i = 0; i < kBatch; ++i) {
        given[i] = batch + i < last ? ptx::ld_global_s32(params.group_data + batch + i) : 0;
      }
      FP8GEMM_UNROLL
      for (uint32_t i = 0; i < kBatch; ++i) {
        const uint32_t size = given[i] < 0 ? 0 : static_cast<uint32_t>(given[i]);
        const uint32_t extent = min(kAlongK ? ceil_div(size, kBlockK) : size, size_limit);
        extents = min(extents + extent, size_limit);
        if (batch + i < last) ptx::st_shared_u32(extent_address(batch + i), extent);
      }
    }

    uint32_t end = sum_below(extents, size_limit);
    uint32_t tiles = 0;
    for (uint32_t group = first; group < last; ++group) {
      const uint32_t extent = ptx::ld_shared_u32(extent_address(group));
      // Masked groups have rows of their own: their extents are not summed.
      const uint32_t begin = kMasked ? 0 : end;
      end = min(begin + extent, size_limit);
      const uint32_t own = kAlongK ? params.cluster_tiles_m : ceil_div(end - begin, kClusterRows);
      tiles += own;
      ptx::st_shared_v2_u32(extent_address(group), end, own);
    }

    uint32_t tile_end = sum_below(tiles, kNoLimit);
    for (uint32_t group = first; group < last; ++group) {
      tile_end += load(group).tile_end;
      ptx::st_shared_u32(tile_address(group), tile_end);
    }
  }

  // Number of groups g with end(g) <= position, where `end` does not decrease with g: the group
  // that holds `position`, or num_groups. One whole warp: first the segment of 32, then the place.
  template <typename End>
  FP8GEMM_DEVICE static uint32_t find(uint32_t num_groups, uint32_t position, End end) {
    static_assert(kMaxGroups <= kWarpThreads * kWarpThreads);
    const uint32_t lane = ptx::lane_idx();
    const uint32_t step = segment(num_groups);
    const uint32_t last = (lane + 1) * step - 1;
    const bool segment_before = last < num_groups && end(last) <= position;
    const uint32_t first = ptx::popc(ptx::vote_sync_ballot(segment_before)) * step;
    const uint32_t group = first + lane;
    const bool group_before = lane < step && group < num_groups && end(group) <= position;
    return first + ptx::popc(ptx::vote_sync_ballot(group_before));
  }

 private:
  // Groups of a lane.
  FP8GEMM_DEVICE static uint32_t segment(uint32_t num_groups) {
    return ceil_div(num_groups, kWarpThreads);
  }

  // Sum of `value` over the lanes below, saturating like warp_prefix_sum.
  FP8GEMM_DEVICE static uint32_t sum_below(uint32_t value, uint32_t limit) {
    const uint32_t below = ptx::shfl_sync_up(warp_prefix_sum(value, limit), 1);
    return ptx::lane_idx() == 0 ? 0 : below;
  }

  FP8GEMM_DEVICE uint32_t extent_address(uint32_t group) const {
    return base + group * kGroupEntryBytes;
  }
  FP8GEMM_DEVICE uint32_t tile_address(uint32_t group) const {
    return extent_address(group) + sizeof(uint32_t);
  }
};

}  // namespace fp8gemm
