// SPDX-License-Identifier: Apache-2.0
// Quantization with one scale per 128x128 block: reads x once, writes values and scales.
// Launched by quantize/quantize_plan.cc.
#pragma once
#include <fp8_quantize/quantize_scale.cuh>

namespace fp8gemm {

// Runs on   a CTA per block, neighbours along columns. Each warp has kTileWarpRows rows.
// Per lane  four elements next to each other of each row; all loads are issued before the first is
//           used.
// Smem      (kQuantizeWarps) u32: bits of the largest magnitude of each warp.
template <QuantizeConfig kConfig>
FP8GEMM_DEVICE void quantize_blocks(const QuantizeParams& params) {
  constexpr uint32_t kBytes = element_bytes(kConfig.x_type);
  const uint32_t smem = ptx::dynamic_smem();
  const uint32_t lane = ptx::lane_idx();
  const uint32_t warp = ptx::warp_idx();
  const uint32_t column_blocks = ceil_div(params.columns, kScaleBlock);
  const uint32_t row_blocks = ceil_div(params.rows, kScaleBlock);
  const uint32_t matrix = ptx::block_idx() / column_blocks / row_blocks;
  const uint32_t row_block = ptx::block_idx() / column_blocks % row_blocks;

  const uint32_t row = row_block * kScaleBlock + warp * kTileWarpRows;
  const uint32_t num_rows = valid_elements(row, kTileWarpRows, params.rows);
  const uint32_t column = ptx::block_idx() % column_blocks * kScaleBlock + lane * 4;
  const uint32_t valid = valid_elements(column, 4, params.columns);
  const bool whole_x = params.x_in_vectors != 0;
  const bool whole_values = params.values_in_vectors != 0;
  const uint64_t first = (uint64_t{matrix} * params.rows + row) * params.columns + column;
  const uint8_t* const x = static_cast<const uint8_t*>(params.x) + first * kBytes;
  uint8_t* const values = static_cast<uint8_t*>(params.values) + first;

  Elements<kConfig.x_type, 4> elements[kTileWarpRows];
  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kTileWarpRows; ++r) {
    const uint64_t offset = uint64_t{r} * params.columns * kBytes;
    elements[r].load(x + offset, r < num_rows ? valid : 0, whole_x);
  }

  uint32_t amax = 0;
  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kTileWarpRows; ++r) {
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < 4; ++i) amax = max(amax, magnitude_bits(elements[r].get(i)));
  }
  amax = ptx::redux_sync_max_u32(amax);
  if (lane == 0) ptx::st_shared_u32(smem + warp * sizeof(uint32_t), amax);
  sync_threads();
  amax = ptx::ld_shared_u32(smem + lane % kQuantizeWarps * sizeof(uint32_t));
  const BlockScale block = block_scale<kConfig>(ptx::redux_sync_max_u32(amax));
  if (ptx::thread_idx() == 0) ptx::st_global_f32(params.scales + ptx::block_idx(), block.scale);

  const Converter<kConfig> convert(block.inverse);
  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kTileWarpRows; ++r) {
    const auto& x4 = elements[r];
    const uint32_t packed = convert.four(x4.get(0), x4.get(1), x4.get(2), x4.get(3));
    store_values(values + uint64_t{r} * params.columns, packed, r < num_rows ? valid : 0,
                 whole_values);
  }
}

}  // namespace fp8gemm
