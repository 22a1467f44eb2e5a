// SPDX-License-Identifier: Apache-2.0
// Where each group begins: one warp of every CTA works it out from sizes only the device knows.
//
// Entry g holds the end of group g in two units: `extent_end` (rows; K blocks when groups lie along
// K) and `tile_end` (cluster tiles along M). Both are running sums, so the group of a tile is found
// by counting ends. Sizes are clamped: a negative one counts as 0, and what passes the end of the
// buffers is cut off.
#pragma once
#include <pipeline.cuh>
#include <ptx/global.cuh>
#include <ptx/warp.cuh>
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
    ptx::ld_shared_v2_u32(base + group * kGroupEntryBytes, entry.extent_end, entry.tile_end);
    return entry;
  }

  // Fills the table. One whole warp; the CTA must synchronise before any other warp reads it.
  FP8GEMM_DEVICE void build(const GemmParams& params) const {
    constexpr bool kAlongK = kConfig.kind == GemmKind::kKGrouped;
    constexpr bool kMasked = kConfig.kind == GemmKind::kMasked;
    constexpr uint32_t kNoLimit = 0x7fffffff;
    const uint32_t size_limit = kMasked ? params.group_rows : kAlongK ? params.k_blocks : params.m;
    const uint32_t sum_limit = kMasked ? kNoLimit : size_limit;
    const uint32_t lane = ptx::lane_idx();
    Entry before{0, 0};
    for (uint32_t first = 0; first < params.num_groups; first += kWarpThreads) {
      const uint32_t group = first + lane;
      const int32_t given =
          group < params.num_groups ? ptx::ld_global_s32(params.group_data + group) : 0;
      const uint32_t size = given < 0 ? 0 : static_cast<uint32_t>(given);
      const uint32_t extent = min(kAlongK ? ceil_div(size, kBlockK) : size, size_limit);
      // Masked groups have rows of their own: their extents are not summed.
      const uint32_t end =
          kMasked ? extent : min(before.extent_end + warp_prefix_sum(extent, sum_limit), sum_limit);
      const uint32_t below = ptx::shfl_sync_up(end, 1);
      const uint32_t begin = kMasked ? 0 : lane == 0 ? before.extent_end : below;
      const uint32_t tiles = kAlongK ? params.cluster_tiles_m : ceil_div(end - begin, kClusterRows);
      const uint32_t tile_end = before.tile_end + warp_prefix_sum(tiles, kNoLimit);
      if (group < params.num_groups) {
        ptx::st_shared_v2_u32(base + group * kGroupEntryBytes, end, tile_end);
      }
      before = {ptx::shfl_sync_idx(end, kWarpThreads - 1),
                ptx::shfl_sync_idx(tile_end, kWarpThreads - 1)};
    }
  }

  // Number of groups g with end(g) <= position, where `end` does not decrease with g: the group
  // that holds `position`, or num_groups. One whole warp: first the segment of 32, then the place.
  template <typename End>
  FP8GEMM_DEVICE static uint32_t find(uint32_t num_groups, uint32_t position, End end) {
    static_assert(kMaxGroups <= kWarpThreads * kWarpThreads);
    const uint32_t lane = ptx::lane_idx();
    const uint32_t step = ceil_div(num_groups, kWarpThreads);
    const uint32_t last = (lane + 1) * step - 1;
    const bool segment_before = last < num_groups && end(last) <= position;
    const uint32_t first = ptx::popc(ptx::vote_sync_ballot(segment_before)) * step;
    const uint32_t group = first + lane;
    const bool group_before = lane < step && group < num_groups && end(group) <= position;
    return first + ptx::popc(ptx::vote_sync_ballot(group_before));
  }
};

}  // namespace fp8gemm
