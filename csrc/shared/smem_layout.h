// SPDX-License-Identifier: Apache-2.0
// Shared-memory layout of a kernel, computed from its configuration. Host (launch size, stage
// count) and device (addresses) both use this one definition.
#pragma once
#include <shared/gemm_config.h>

namespace fp8gemm {

// Largest dynamic shared memory a Hopper block can opt in to.
inline constexpr uint32_t kMaxSmemBytes = 232448;
// 128B-swizzled tiles must start on a multiple of the 8-row swizzle atom.
inline constexpr uint32_t kSwizzleAtomBytes = 1024;
// A shared-memory line of 128B-swizzled data: one row of an operand tile.
inline constexpr uint32_t kRowBytes = kBlockK;

// Bytes of a row of the output tile of one CTA.
FP8GEMM_HOST_DEVICE constexpr uint32_t d_row_bytes(const GemmConfig& config) {
  return config.stored_columns() * element_bytes(config.d_type);
}

// Bytes of the TMA swizzle of the output tile, and so of a row of its boxes; 0 where none is needed
// and a box has whole rows. That is where the length of rows leads enough of them to different
// banks for the others to be kept apart by one exchange (BlockOrder): odd multiples of 64 bytes of
// float32, of 32 of 16-bit results.
FP8GEMM_HOST_DEVICE constexpr uint32_t d_swizzle_bytes(const GemmConfig& config) {
  if (d_row_bytes(config) % 128 == 0) return 128;
  return config.d_type != OutType::kF32 && d_row_bytes(config) % 64 == 0 ? 64u : 0u;
}

// Rows one TMA store (or accumulator load) moves.
FP8GEMM_HOST_DEVICE constexpr uint32_t d_box_rows(const GemmConfig& config) {
  return min(config.block_m, kMmaM);
}

// 64-row slabs of the output that a consumer stages at a time: float32 slabs are reused.
FP8GEMM_HOST_DEVICE constexpr uint32_t d_slabs(const GemmConfig& config) {
  return config.d_type == OutType::kF32 ? 1u : config.row_slices();
}

// Columns of the output one TMA store moves, and the shared memory that it takes them from.
FP8GEMM_HOST_DEVICE constexpr uint32_t d_box_columns(const GemmConfig& config) {
  const uint32_t swizzle = d_swizzle_bytes(config);
  return swizzle == 0 ? config.stored_columns() : swizzle / element_bytes(config.d_type);
}
FP8GEMM_HOST_DEVICE constexpr uint32_t d_box_bytes(const GemmConfig& config) {
  return kMmaM * d_box_columns(config) * element_bytes(config.d_type);
}

// Scales of A that come with a K block of a tile. TMA traps where a box begins between multiples of
// 16 bytes; a tile that can begin there has its scales loaded from the multiple before it.
FP8GEMM_HOST_DEVICE constexpr uint32_t sfa_scales(const GemmConfig& config) {
  return config.block_m + (config.begins_at_any_row() ? kScaleAlignment : 0);
}

// Boxes that they come in, and scales in each. A box has 256 elements at most along one dimension,
// and begins at a multiple of 128 bytes of shared memory.
FP8GEMM_HOST_DEVICE constexpr uint32_t sfa_boxes(const GemmConfig& config) {
  return ceil_div(sfa_scales(config), 256u);
}
FP8GEMM_HOST_DEVICE constexpr uint32_t sfa_box_scales(const GemmConfig& config) {
  const uint32_t boxes = sfa_boxes(config);
  return boxes == 1 ? sfa_scales(config) : align_up(ceil_div(sfa_scales(config), boxes), 32u);
}
FP8GEMM_HOST_DEVICE constexpr uint32_t sfa_bytes(const GemmConfig& config) {
  return sfa_boxes(config) * sfa_box_scales(config) * uint32_t{sizeof(float)};
}

// Offsets are in bytes from the start of dynamic shared memory, which is 1024-aligned.
struct SmemLayout {
  uint32_t d;         // [consumer][slab][box][64 rows] (d_box_columns)
  uint32_t a;         // [stage] (block_m, 128) fp8, 128B swizzle; 64 rows even for smaller tiles
  uint32_t b;         // [stage] (block_n, 128) fp8, 128B swizzle
  uint32_t sfa;       // [stage][box] (sfa_box_scales) f32
  uint32_t sfb;       // [stage] 1d2d: (2) f32, of the tile's first and second column block;
                      //         1d1d: (block_n) f32
  uint32_t partials;  // split K: [consumer][source CTA][8 columns][128 threads] (4) f32
  uint32_t full;      // [stage] mbarrier: operands have landed
  uint32_t empty;     // [stage] mbarrier: every consumer of the cluster is done with the stage
  uint32_t c_full;    // [consumer] mbarrier: the accumulator tile has landed in d
  uint32_t summed;    // [consumer] mbarrier: the partial sums of the whole cluster have landed
  uint32_t groups;    // [group] (2) u32: see GroupTable
  uint32_t bytes;     // total without groups

  uint32_t d_slab_bytes;
  uint32_t a_stage_bytes;
  uint32_t b_stage_bytes;
  uint32_t sfa_stage_bytes;
  uint32_t sfb_stage_bytes;
};

inline constexpr uint32_t kBarrierBytes = 8;
// Shared memory that every configuration with a table of groups keeps for it.
inline constexpr uint32_t kGroupEntryBytes = 2 * sizeof(uint32_t);
inline constexpr uint32_t kGroupTableBytes = 4096;
inline constexpr uint32_t kMaxGroups = kGroupTableBytes / kGroupEntryBytes;

// Partial sums that one consumer receives: what it stores, from every CTA of the cluster.
FP8GEMM_HOST_DEVICE constexpr uint32_t partials_bytes(const GemmConfig& config) {
  return config.split_k == 1 ? 0 : kMmaM * config.block_n * uint32_t{sizeof(float)};
}

FP8GEMM_HOST_DEVICE constexpr SmemLayout make_smem_layout(const GemmConfig& config) {
  SmemLayout layout{};
  layout.d_slab_bytes = align_up(kMmaM * d_row_bytes(config), kSwizzleAtomBytes);
  layout.a_stage_bytes = max(config.block_m, kMmaM) * kRowBytes;
  layout.b_stage_bytes = config.block_n * kRowBytes;
  layout.sfa_stage_bytes = align_up(sfa_bytes(config), 128u);
  layout.sfb_stage_bytes = config.scaling == Scaling::k1D2D
                               ? 2 * uint32_t{sizeof(float)}
                               : align_up(config.block_n * uint32_t{sizeof(float)}, 128u);

  layout.d = 0;
  layout.a = layout.d + config.num_consumers * d_slabs(config) * layout.d_slab_bytes;
  layout.b = layout.a + config.num_stages * layout.a_stage_bytes;
  layout.sfa = layout.b + config.num_stages * layout.b_stage_bytes;
  layout.sfb = layout.sfa + config.num_stages * layout.sfa_stage_bytes;
  layout.partials = align_up(layout.sfb + config.num_stages * layout.sfb_stage_bytes, 16u);
  layout.full = layout.partials + config.num_consumers * partials_bytes(config);
  layout.empty = layout.full + config.num_stages * kBarrierBytes;
  layout.c_full = layout.empty + config.num_stages * kBarrierBytes;
  layout.summed = layout.c_full + config.num_consumers * kBarrierBytes;
  layout.groups = layout.summed + config.num_consumers * kBarrierBytes;
  layout.bytes = layout.groups;
  return layout;
}

// Bytes the TMA producer of one CTA announces per stage; the peers' multicast halves included.
FP8GEMM_HOST_DEVICE constexpr uint32_t stage_tx_bytes(const GemmConfig& config) {
  const uint32_t sfb_bytes =
      config.scaling == Scaling::k1D1D ? config.block_n * uint32_t{sizeof(float)} : 0;
  return (config.block_m + config.block_n) * kRowBytes + sfa_bytes(config) + sfb_bytes;
}

// Dynamic shared memory of a launch.
FP8GEMM_HOST_DEVICE constexpr uint32_t launch_smem_bytes(const GemmConfig& config) {
  return make_smem_layout(config).bytes + (config.has_group_table() ? kGroupTableBytes : 0);
}

}  // namespace fp8gemm
