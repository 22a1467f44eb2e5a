// SPDX-License-Identifier: Apache-2.0
// Quantization with one scale per 128 columns of a row: reads x once, writes values and, with rows
// innermost as the GEMMs read them, scales.
// Launched by quantize/quantize_plan.cc.
#pragma once
#include <fp8_quantize/quantize_scale.cuh>

namespace fp8gemm {

// Runs on   every warp for itself: kWarpRows rows of one column block, neighbours along columns.
// Per lane  four elements next to each other of each row; all loads are issued before the first is
//           used. Lane r < kWarpRows works out and writes the scale of row r.
template <QuantizeConfig kConfig>
FP8GEMM_DEVICE void quantize_rows(const QuantizeParams& params) {
  constexpr uint32_t kBytes = element_bytes(kConfig.x_type);
  const uint32_t lane = ptx::lane_idx();
  const uint32_t unit = ptx::block_idx() * kQuantizeWarps + ptx::warp_idx();
  const uint32_t blocks = ceil_div(params.columns, kScaleBlock);
  const uint32_t first_row = unit / blocks * kWarpRows;
  const uint32_t block = unit % blocks;
  if (first_row >= params.rows) return;

  const uint32_t column = block * kScaleBlock + lane * 4;
  const uint32_t valid = valid_elements(column, 4, params.columns);
  const uint32_t num_rows = min(kWarpRows, params.rows - first_row);
  const bool whole_x = params.x_in_vectors != 0;
  const bool whole_values = params.values_in_vectors != 0;
  const uint64_t first = uint64_t{first_row} * params.columns + column;
  const uint8_t* const x = static_cast<const uint8_t*>(params.x) + first * kBytes;
  uint8_t* const values = static_cast<uint8_t*>(params.values) + first;

  Elements<kConfig.x_type, 4> elements[kWarpRows];
  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kWarpRows; ++r) {
    const uint64_t offset = uint64_t{r} * params.columns * kBytes;
    elements[r].load(x + offset, r < num_rows ? valid : 0, whole_x);
  }

  uint32_t own_amax = 0;
  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kWarpRows; ++r) {
    uint32_t amax = 0;
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < 4; ++i) amax = max(amax, magnitude_bits(elements[r].get(i)));
    amax = ptx::redux_sync_max_u32(amax);
    if (lane == r) own_amax = amax;
  }
  const BlockScale own = block_scale<kConfig>(own_amax);
  if (lane < num_rows) {
    const uint64_t place = uint64_t{block} * params.scale_pitch + first_row + lane;
    ptx::st_global_f32(params.scales + place, own.scale);
  }

  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kWarpRows; ++r) {
    const uint32_t inverse = ptx::shfl_sync_idx(ptx::float_as_uint(own.inverse), r);
    const Converter<kConfig> convert(ptx::uint_as_float(inverse));
    const auto& x4 = elements[r];
    const uint32_t packed = convert.four(x4.get(0), x4.get(1), x4.get(2), x4.get(3));
    store_values(values + uint64_t{r} * params.columns, packed, r < num_rows ? valid : 0,
                 whole_values);
  }
}

}  // namespace fp8gemm
