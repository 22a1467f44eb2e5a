// SPDX-License-Identifier: Apache-2.0
// QuantizeConfig: everything a quantize kernel is specialized on.
#pragma once
#include <shared/gemm_config.h>

namespace fp8gemm {

// Which elements share a scale, and how values are written.
enum class QuantizeLayout : uint8_t {
  kRows = 0,        // 128 columns of a row; values as x
  kBlocks = 1,      // 128 columns of 128 rows; values as x
  kTransposed = 2,  // 128 rows of a column; values are the transpose
  kKGrouped = 3,    // as kTransposed, groups of rows starting at multiples of 128 columns
  // Both from one reading of x, each as the layout by itself.
  kRowsAndTransposed = 4,
  kRowsAndKGrouped = 5,
  // As kRows, of what becomes of x on the way: silu(x) * up, gelu(x) * up, gelu(x).
  kSwiGLU = 6,
  kGeGLU = 7,
  kGELU = 8,
  kRMSNorm = 9,  // x times a factor of its row and one of its column
};

// Elements of x. kE4M3: values with one scale per 1x128, to be scaled anew along columns.
enum class XType : uint8_t { kBF16 = 0, kF16 = 1, kF32 = 2, kE4M3 = 3 };

FP8GEMM_HOST_DEVICE constexpr uint32_t element_bytes(XType type) {
  return type == XType::kF32 ? 4u : type == XType::kE4M3 ? 1u : 2u;
}

struct QuantizeConfig {
  QuantizeLayout layout = QuantizeLayout::kRows;
  XType x_type = XType::kBF16;
  Fp8Type type = Fp8Type::kE4M3;
  bool pow2 = false;  // scales rounded up to powers of two

  constexpr bool operator==(const QuantizeConfig&) const = default;

  FP8GEMM_HOST_DEVICE constexpr bool is_transposed() const {
    return layout >= QuantizeLayout::kTransposed && !is_activation();
  }
  // Whether rows are groups.
  FP8GEMM_HOST_DEVICE constexpr bool is_grouped() const {
    return layout == QuantizeLayout::kKGrouped || layout == QuantizeLayout::kRowsAndKGrouped;
  }
  // Whether a transposed layout comes with kRows.
  FP8GEMM_HOST_DEVICE constexpr bool has_rows() const {
    return layout >= QuantizeLayout::kRowsAndTransposed && !is_activation();
  }
  FP8GEMM_HOST_DEVICE constexpr bool is_activation() const {
    return layout >= QuantizeLayout::kSwiGLU;
  }
  // Whether the activation is multiplied by another array.
  FP8GEMM_HOST_DEVICE constexpr bool is_gated() const {
    return layout == QuantizeLayout::kSwiGLU || layout == QuantizeLayout::kGeGLU;
  }
  // Whether x is multiplied by factors of its rows and of its columns.
  FP8GEMM_HOST_DEVICE constexpr bool is_normalized() const {
    return layout == QuantizeLayout::kRMSNorm;
  }
  // Whether the result is that of kRows alone.
  FP8GEMM_HOST_DEVICE constexpr bool is_rows() const {
    return layout == QuantizeLayout::kRows || is_activation();
  }
};

// Along which 128 elements share a scale, in every layout.
inline constexpr uint32_t kScaleBlock = 128;
inline constexpr uint32_t kQuantizeWarps = 8;
inline constexpr uint32_t kQuantizeThreads = kQuantizeWarps * kWarpThreads;
// kRows: rows that one warp loads at once, a column block of each.
inline constexpr uint32_t kWarpRows = 8;
// Otherwise: rows of a 128-row tile that one warp has.
inline constexpr uint32_t kTileWarpRows = kScaleBlock / kQuantizeWarps;

// Values along rows that a lane stores at once.
inline constexpr uint32_t kRowVector = 4;
// Elements of x that a lane loads at once, and values that it stores at once, where rows are whole
// vectors and begin at multiples of them.
FP8GEMM_HOST_DEVICE constexpr uint32_t x_vector(const QuantizeConfig& config) {
  return config.is_transposed() && !config.has_rows() ? 2 : 4;
}
FP8GEMM_HOST_DEVICE constexpr uint32_t values_vector(const QuantizeConfig& config) {
  return config.is_transposed() ? 16 : kRowVector;
}

// Transposed: columns of x, rows of the result, in a tile.
FP8GEMM_HOST_DEVICE constexpr uint32_t tile_columns(const QuantizeConfig& config) {
  return kWarpThreads * x_vector(config);
}

// Transposed: blocks of rows of x, with `out_columns` of the result. Rows in no group are in none
// of the result's: along rows, one more is enough for them.
FP8GEMM_HOST_DEVICE constexpr uint32_t row_blocks(const QuantizeConfig& config,
                                                  uint32_t out_columns) {
  const uint32_t more = config.is_grouped() && config.has_rows() ? 1 : 0;
  return ceil_div(out_columns, kScaleBlock) + more;
}

// Shared memory of the transposed layouts: amax of each warp and column, then the result's tile.
// A row is padded so that lanes that write 16 bytes to rows next to each other meet no bank twice.
FP8GEMM_HOST_DEVICE constexpr uint32_t amax_bytes(const QuantizeConfig& config) {
  return kQuantizeWarps * tile_columns(config) * sizeof(uint32_t);
}
inline constexpr uint32_t kTileRowBytes = kScaleBlock + 16;

FP8GEMM_HOST_DEVICE constexpr uint32_t quantize_smem_bytes(const QuantizeConfig& config) {
  if (config.is_rows()) return 0;
  if (config.layout == QuantizeLayout::kBlocks) return kQuantizeWarps * sizeof(uint32_t);
  return amax_bytes(config) + tile_columns(config) * kTileRowBytes;
}

// Whether the kernel exists: e4m3 is only read to scale activations for a weight gradient, whose
// scales are powers of two.
FP8GEMM_HOST_DEVICE constexpr bool is_quantizer(const QuantizeConfig& config) {
  if (config.x_type != XType::kE4M3) return true;
  const bool is_scaled_anew = config.is_transposed() && !config.has_rows();
  return is_scaled_anew && config.type == Fp8Type::kE4M3 && config.pow2;
}

// Calls `visit` with every kernel's configuration, in a fixed order.
template <typename Visitor>
FP8GEMM_HOST_DEVICE constexpr void for_each_quantizer(Visitor&& visit) {
  for (uint32_t i = 0; i < 10 * 4 * 2 * 2; ++i) {
    const QuantizeConfig config{.layout = static_cast<QuantizeLayout>(i / 16),
                                .x_type = static_cast<XType>(i / 4 % 4),
                                .type = static_cast<Fp8Type>(i / 2 % 2),
                                .pow2 = i % 2 != 0};
    if (is_quantizer(config)) visit(config);
  }
}

}  // namespace fp8gemm
