// SPDX-License-Identifier: Apache-2.0
// GemmConfig: everything a kernel is specialized on. A structural type, so it is the template
// argument of the kernel, the key of the caches and the value the heuristics return.
#pragma once
#include <shared/types.h>

namespace fp8gemm {

// Both scale blocks and the promotion interval are 128 along K; so is the tile.
inline constexpr uint32_t kBlockK = 128;
// Rows of one wgmma instruction.
inline constexpr uint32_t kMmaM = 64;
// K extent of one fp8 wgmma instruction.
inline constexpr uint32_t kMmaK = 32;
inline constexpr uint32_t kWarpThreads = 32;
inline constexpr uint32_t kWarpgroupThreads = 128;
inline constexpr uint32_t kWarpgroupWarps = 4;
// Columns of `b` (rows of the weight) that share one scale.
inline constexpr uint32_t kScaleBlockN = 128;
// Scales in 16 bytes: TMA loads them from multiples of that, and rows of them are padded to it.
inline constexpr uint32_t kScaleAlignment = 4;

enum class Fp8Type : uint8_t { kE4M3 = 0, kE5M2 = 1 };
enum class OutType : uint8_t { kBF16 = 0, kF16 = 1, kF32 = 2 };

// How the output is divided among groups (experts); group g multiplies with b[g].
enum class GemmKind : uint8_t {
  kDense = 0,       // one group
  kRagged = 1,      // rows of `a` back to back, group_sizes[g] of them; the rest of `d` is zero
  kContiguous = 2,  // a group id per row, groups start at multiples of kContiguousAlignment
  kMasked = 3,      // group_rows rows per group, of which the first masked_m[g] count
  kKGrouped = 4,    // groups along K: d[g] = a[:, k range g] b[:, k range g]^T
};

// Scale blocks: of `a` always 1x128; of `b` 128x128 (1d2d) or 1x128 (1d1d).
enum class Scaling : uint8_t { k1D2D = 0, k1D1D = 1 };

// Rows of one group in the contiguous layout start at multiples of this.
inline constexpr uint32_t kContiguousAlignment = 128;

FP8GEMM_HOST_DEVICE constexpr uint32_t element_bytes(OutType type) {
  return type == OutType::kF32 ? 4u : 2u;
}

struct GemmConfig {
  GemmKind kind = GemmKind::kDense;
  Scaling scaling = Scaling::k1D2D;
  uint32_t block_m = 128;      // rows of `d` per CTA: 16, 32, or 64 * num_consumers * row slices
  uint32_t block_n = 128;      // columns of `d` per CTA, a multiple of 16
  uint32_t num_consumers = 2;  // warpgroups that run wgmma
  uint32_t num_stages = 4;     // depth of the shared-memory pipeline
  uint32_t cluster_m = 1;      // CTAs of a cluster along M: they share (multicast) `b`
  uint32_t cluster_n = 1;      // CTAs of a cluster along N: they share (multicast) `a`
  uint32_t split_k = 1;        // CTAs of a cluster that divide K of one tile among them
  Fp8Type a_type = Fp8Type::kE4M3;
  Fp8Type b_type = Fp8Type::kE4M3;
  OutType d_type = OutType::kBF16;
  bool accumulate = false;  // d = c + a b^T
  bool pdl = false;         // launched with programmatic stream serialization

  constexpr bool operator==(const GemmConfig&) const = default;

  FP8GEMM_HOST_DEVICE constexpr uint32_t cluster_size() const { return sharing() * split_k; }
  // CTAs that write into each other's pipeline by multicast.
  FP8GEMM_HOST_DEVICE constexpr uint32_t sharing() const { return cluster_m * cluster_n; }
  // Columns of the tile that one CTA stores: with split K each finishes a part of them.
  FP8GEMM_HOST_DEVICE constexpr uint32_t stored_columns() const { return block_n / split_k; }
  // Rows one consumer warpgroup owns; whole wgmma rows even when the tile has fewer.
  FP8GEMM_HOST_DEVICE constexpr uint32_t consumer_rows() const {
    return max(kMmaM, block_m / num_consumers);
  }
  // wgmma row blocks that one consumer warpgroup runs one after the other.
  FP8GEMM_HOST_DEVICE constexpr uint32_t row_slices() const { return consumer_rows() / kMmaM; }
  FP8GEMM_HOST_DEVICE constexpr uint32_t consumer_threads() const {
    return num_consumers * kWarpgroupThreads;
  }
  FP8GEMM_HOST_DEVICE constexpr uint32_t threads() const {
    return consumer_threads() + kWarpgroupThreads;
  }
  // Whether a table of group boundaries lies in shared memory.
  FP8GEMM_HOST_DEVICE constexpr bool has_group_table() const {
    return kind == GemmKind::kRagged || kind == GemmKind::kMasked || kind == GemmKind::kKGrouped;
  }
  // Whether a tile can begin at any row of `a`; otherwise it begins at a multiple of 16.
  FP8GEMM_HOST_DEVICE constexpr bool begins_at_any_row() const {
    return kind == GemmKind::kRagged || kind == GemmKind::kMasked;
  }
  // Whether a tile may end before its last row while `d` goes on with rows of another group.
  FP8GEMM_HOST_DEVICE constexpr bool limits_rows() const { return has_group_table(); }
  // Whether a tile can hold padding rows, which become zeros.
  FP8GEMM_HOST_DEVICE constexpr bool has_padding_rows() const {
    return kind == GemmKind::kContiguous || kind == GemmKind::kMasked;
  }
  // Scale blocks along N that a tile can touch (1d2d): tiles start at multiples of block_n.
  FP8GEMM_HOST_DEVICE constexpr uint32_t scale_blocks_n() const {
    return kScaleBlockN % block_n == 0 ? 1u : 2u;
  }
  // With one consumer warpgroup every thread can have the registers it needs without moving any.
  FP8GEMM_HOST_DEVICE constexpr bool moves_registers() const { return num_consumers > 1; }
  // Registers per thread after setmaxnreg. A launch of 384 threads gets 168 each, of 512 gets 128:
  // 2 * 232 + 40 = 3 * 168 and 3 * 160 + 32 = 4 * 128.
  FP8GEMM_HOST_DEVICE constexpr uint32_t consumer_registers() const {
    return num_consumers == 3 ? 160u : 232u;
  }
  FP8GEMM_HOST_DEVICE constexpr uint32_t producer_registers() const {
    return num_consumers == 3 ? 32u : 40u;
  }
};

}  // namespace fp8gemm
