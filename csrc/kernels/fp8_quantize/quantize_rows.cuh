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

// Which of a warp's rows are valid, the first in the low bit: those in groups, or all there are.
// One whole warp.
FP8GEMM_DEVICE uint32_t valid_row_bits(const QuantizeParams& params, uint32_t first_row,
                                       uint32_t num_rows) {
  const uint32_t lane = ptx::lane_idx();
  const uint32_t row = first_row + lane;
  bool is_valid = lane < num_rows;
  if (params.num_groups != 0) {
    const uint32_t last_matrix = (first_row + num_rows - 1) / params.rows;
    for (uint32_t matrix = first_row / params.rows; matrix <= last_matrix; ++matrix) {
      const uint32_t count = count_valid_rows(params, matrix);
      if (row / params.rows == matrix) is_valid = is_valid && row % params.rows < count;
    }
  }
  return ptx::vote_sync_ballot(is_valid);
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
  const uint32_t rows = params.batches * params.rows;
  const uint32_t first_row = unit / blocks * kWarpRows;
  const uint32_t block = unit % blocks;
  if (first_row >= rows) return;

  const uint32_t column = block * kScaleBlock + lane * 4;
  const uint32_t valid = valid_elements(column, 4, params.columns);
  const uint32_t num_rows = min(kWarpRows, rows - first_row);
  const uint32_t row_bits = valid_row_bits(params, first_row, num_rows);
  const bool whole_x = params.x_in_vectors != 0;
  const uint64_t first = (uint64_t{first_row} * params.x_pitch + column) * kBytes;

  Elements<kConfig.x_type, 4> elements[kWarpRows];
  Elements<kConfig.x_type, 4> up[kWarpRows];
  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kWarpRows; ++r) {
    const uint64_t offset = first + uint64_t{r} * params.x_pitch * kBytes;
    const uint32_t count = (row_bits >> r & 1) != 0 ? valid : 0;
    elements[r].load(static_cast<const uint8_t*>(params.x) + offset, count, whole_x);
    if constexpr (kConfig.is_gated()) {
      up[r].load(static_cast<const uint8_t*>(params.up) + offset, count, whole_x);
    }
  }
  if constexpr (kConfig.is_activation()) {
    FP8GEMM_UNROLL
    for (uint32_t r = 0; r < kWarpRows; ++r) activate<kConfig.layout>(elements[r], up[r]);
  }

  const uint64_t place = uint64_t{block} * params.scale_pitch + first_row;
  write_rows<kConfig>(
      elements,
      {static_cast<uint8_t*>(params.values) + uint64_t{first_row} * params.columns + column,
       params.scales + place, num_rows, valid, params.columns, params.values_in_vectors != 0});
}

}  // namespace fp8gemm
