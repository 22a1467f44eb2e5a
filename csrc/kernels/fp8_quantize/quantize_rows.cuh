// SPDX-License-Identifier: Apache-2.0
// Quantization with one scale per 128 columns of a row: reads x once, writes values and, with rows
// innermost as the GEMMs read them, scales; of x, or of an activation of it.
// Launched by quantize/quantize_plan.cc.
#pragma once
#include <fp8_quantize/activation.cuh>
#include <fp8_quantize/quantize_scale.cuh>
#include <warp_scan.cuh>

namespace fp8gemm {

// Where a warp's rows of one column block go.
struct RowPlace {
  uint8_t* values;    // of the lane's first column of the first row
  float* scales;      // of the first row
  uint32_t num_rows;  // rows of the warp that are written
  uint32_t valid;     // columns of the lane that are
  uint32_t columns;   // from one row to the next
  bool in_vectors;    // as for store_values
};

// Writes values and scales of a warp's rows, at most one per lane: four elements next to each other
// of each row per lane. Lane r works out and writes the scale of row r.
template <QuantizeConfig kConfig, uint32_t kRows>
FP8GEMM_DEVICE void write_rows(Elements<kConfig.x_type, 4> (&elements)[kRows],
                               const RowPlace& place) {
  const uint32_t lane = ptx::lane_idx();
  uint32_t own_amax = 0;
  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kRows; ++r) {
    uint32_t amax = 0;
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < 4; ++i) amax = max(amax, magnitude_bits(elements[r].get(i)));
    amax = ptx::redux_sync_max_u32(amax);
    if (lane == r) own_amax = amax;
  }
  const BlockScale own = block_scale<kConfig>(own_amax);
  if (lane < place.num_rows) ptx::st_global_f32(place.scales + lane, own.scale);
  if constexpr (kConfig.has_rows()) keep_halves(elements);

  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kRows; ++r) {
    const uint32_t inverse = ptx::shfl_sync_idx(ptx::float_as_uint(own.inverse), r);
    const Converter<kConfig> convert(ptx::uint_as_float(inverse));
    const auto& x4 = elements[r];
    const uint32_t packed = convert.four(x4.get(0), x4.get(1), x4.get(2), x4.get(3));
    store_values(place.values + uint64_t{r} * place.columns, packed,
                 r < place.num_rows ? place.valid : 0, place.in_vectors);
  }
}

// How many rows of a matrix are in groups: their sizes clamped, negative ones counted as 0. One
// whole warp: a lane per group.
FP8GEMM_DEVICE uint32_t count_valid_rows(const QuantizeParams& params, uint32_t matrix) {
  const int32_t* const sizes = params.group_sizes + uint64_t{matrix} * params.num_groups;
  uint32_t count = 0;
  for (uint32_t first = 0; first < params.num_groups; first += kWarpThreads) {
    const uint32_t group = first + ptx::lane_idx();
    const int32_t given = group < params.num_groups ? ptx::ld_global_nc_s32(sizes + group) : 0;
    const uint32_t size = given < 0 ? 0 : min(static_cast<uint32_t>(given), params.rows);
    const uint32_t sum = warp_prefix_sum(size, params.rows);
    count = min(count + ptx::shfl_sync_idx(sum, kWarpThreads - 1), params.rows);
  }
  return count;
}

// What becomes of a warp's rows on the way, in their place: a norm, from row `row` of `matrix` and
// column `column` of the lane on. `counts` says how many elements of each row are valid.
template <XType kType>
FP8GEMM_DEVICE void normalize_rows(const QuantizeParams& params, uint32_t matrix, uint32_t row,
                                   uint32_t column, const uint32_t (&counts)[kWarpRows],
                                   Elements<kType, 4> (&elements)[kWarpRows]) {
  const uint32_t own_row = row + ptx::lane_idx();
  const bool has_row = ptx::lane_idx() < kWarpRows && own_row < params.rows;
  const float* const row_factors = params.row_factors + uint64_t{matrix} * params.rows + own_row;
  const float own_factor = has_row ? ptx::ld_global_nc_f32(row_factors) : 0.0f;
  const float* const weight = params.column_factors + uint64_t{matrix} * params.columns + column;
  Elements<XType::kF32, 4> column_factors;
  column_factors.load(reinterpret_cast<const uint8_t*>(weight),
                      valid_elements(column, 4, params.columns), params.factors_in_vectors != 0);
  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kWarpRows; ++r) {
    const uint32_t factor = ptx::shfl_sync_idx(ptx::float_as_uint(own_factor), r);
    normalize(elements[r], ptx::uint_as_float(factor), column_factors, counts[r]);
  }
}

// Runs on   every warp for itself: kWarpRows rows of one column block, neighbours along columns.
// Per lane  four elements next to each other of each row; all loads are issued before the first is
//           used. Rows in no group are not read, and written as zeros.
template <QuantizeConfig kConfig>
FP8GEMM_DEVICE void quantize_rows(const QuantizeParams& params) {
  constexpr uint32_t kBytes = element_bytes(kConfig.x_type);
  const uint32_t lane = ptx::lane_idx();
  const uint32_t unit = ptx::block_idx() * kQuantizeWarps + ptx::warp_idx();
  const uint32_t blocks = ceil_div(params.columns, kScaleBlock);
  const uint32_t row_units = ceil_div(params.rows, kWarpRows);
  const uint32_t block = unit % blocks;
  const uint32_t row = unit / blocks % row_units * kWarpRows;
  const uint32_t matrix = unit / blocks / row_units;
  if (matrix >= params.batches) return;

  const uint32_t column = block * kScaleBlock + lane * 4;
  const uint32_t valid = valid_elements(column, 4, params.columns);
  const uint32_t end = params.num_groups == 0 ? params.rows : count_valid_rows(params, matrix);
  const bool whole_x = params.x_in_vectors != 0;
  const uint64_t first_row = uint64_t{matrix} * params.rows + row;
  const uint64_t first = (first_row * params.x_pitch + column) * kBytes;

  Elements<kConfig.x_type, 4> elements[kWarpRows];
  Elements<kConfig.x_type, 4> up[kWarpRows];
  uint32_t counts[kWarpRows];
  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kWarpRows; ++r) {
    const uint64_t offset = first + uint64_t{r} * params.x_pitch * kBytes;
    counts[r] = row + r < end ? valid : 0;
    elements[r].load(static_cast<const uint8_t*>(params.x) + offset, counts[r], whole_x);
    if constexpr (kConfig.is_gated()) {
      up[r].load(static_cast<const uint8_t*>(params.up) + offset, counts[r], whole_x);
    }
  }
  if constexpr (kConfig.is_normalized()) {
    normalize_rows(params, matrix, row, column, counts, elements);
  } else if constexpr (kConfig.is_activation()) {
    FP8GEMM_UNROLL
    for (uint32_t r = 0; r < kWarpRows; ++r) activate<kConfig.layout>(elements[r], up[r]);
  }

  const uint64_t place = uint64_t{block} * params.scale_pitch + first_row;
  write_rows<kConfig>(
      elements, {static_cast<uint8_t*>(params.values) + first_row * params.columns + column,
                 params.scales + place, min(kWarpRows, params.rows - row), valid, params.columns,
                 params.values_in_vectors != 0});
}

}  // namespace fp8gemm
