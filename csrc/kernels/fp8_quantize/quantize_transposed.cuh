// SPDX-License-Identifier: Apache-2.0
// Quantization of the transpose with one scale per 128 rows of a column, of all rows as they are or
// of groups, and from the same reading along rows too: reads x once, writes values transposed and,
// with columns innermost, scales.
// Launched by quantize/quantize_plan.cc.
#pragma once
#include <fp8_quantize/quantize_rows.cuh>
#include <fp8_quantize/quantize_scale.cuh>
#include <warp_scan.cuh>

namespace fp8gemm {

// The rows of x behind 128 columns of the result.
struct RowBlock {
  uint32_t first;
  uint32_t count;  // up to 128; columns past it are padding
  // Up to 128, and `count` but for blocks past the last group: rows that are in none, zeros along
  // rows.
  uint32_t written;
};

// The rows behind column block `block` where groups start at multiples of 128 columns. Sizes are
// clamped: a negative one counts as 0, and what passes the last row is cut off. One whole warp: a
// lane per group, 32 groups after the other.
FP8GEMM_DEVICE RowBlock find_group_rows(const QuantizeParams& params, uint32_t matrix,
                                        uint32_t block) {
  constexpr uint32_t kNoLimit = 0x7fffffff;
  constexpr uint32_t kLastLane = kWarpThreads - 1;
  const uint32_t lane = ptx::lane_idx();
  const int32_t* const sizes = params.group_sizes + uint64_t{matrix} * params.num_groups;
  uint32_t rows_before = 0;
  uint32_t blocks_before = 0;
  for (uint32_t first = 0; first < params.num_groups; first += kWarpThreads) {
    const uint32_t group = first + lane;
    const int32_t given = group < params.num_groups ? ptx::ld_global_nc_s32(sizes + group) : 0;
    const uint32_t size = given < 0 ? 0 : min(static_cast<uint32_t>(given), params.rows);
    const uint32_t end = min(rows_before + warp_prefix_sum(size, params.rows), params.rows);
    const uint32_t end_below = ptx::shfl_sync_up(end, 1);
    const uint32_t begin = lane == 0 ? rows_before : end_below;
    const uint32_t blocks = ceil_div(end - begin, kScaleBlock);
    const uint32_t block_end = blocks_before + warp_prefix_sum(blocks, kNoLimit);
    // Ends do not decrease: the lanes that do not pass `block` come first.
    const uint32_t passed = ptx::popc(ptx::vote_sync_ballot(block_end <= block));
    if (passed < kWarpThreads) {
      const uint32_t row = begin + (block - (block_end - blocks)) * kScaleBlock;
      const uint32_t count = min(end - row, kScaleBlock);
      const uint32_t own_count = ptx::shfl_sync_idx(count, passed);
      return {ptx::shfl_sync_idx(row, passed), own_count, own_count};
    }
    rows_before = ptx::shfl_sync_idx(end, kLastLane);
    blocks_before = ptx::shfl_sync_idx(block_end, kLastLane);
  }
  const uint32_t row = rows_before + (block - blocks_before) * kScaleBlock;
  return {row, 0, valid_elements(row, kScaleBlock, params.rows)};
}

// One warp's rows of a tile: kCount columns next to each other per lane, kTileWarpRows rows. Loads
// all before it uses any. From row `row` of matrix `matrix` on; rows past `num_rows` are zeros.
template <XType kType, uint32_t kCount>
FP8GEMM_DEVICE void load_warp_tile(const QuantizeParams& params, uint32_t matrix, uint32_t row,
                                   uint32_t num_rows, uint32_t first_column,
                                   Elements<kType, kCount> (&elements)[kTileWarpRows]) {
  constexpr uint32_t kBytes = element_bytes(kType);
  const uint32_t column = first_column + kCount * ptx::lane_idx();
  const uint32_t valid = valid_elements(column, kCount, params.columns);
  const bool whole = params.x_in_vectors != 0;
  const uint64_t first = (uint64_t{matrix} * params.rows + row) * params.columns + column;
  const uint8_t* const x = static_cast<const uint8_t*>(params.x) + first * kBytes;
  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kTileWarpRows; ++r) {
    const uint64_t offset = uint64_t{r} * params.columns * kBytes;
    elements[r].load(x + offset, r < num_rows ? valid : 0, whole);
  }
}

// The same for float8 with a scale per row and 128 columns, multiplied out.
FP8GEMM_DEVICE void load_scaled_warp_tile(const QuantizeParams& params, uint32_t matrix,
                                          uint32_t row, uint32_t num_rows, uint32_t first_column,
                                          Elements<XType::kF32, 2> (&elements)[kTileWarpRows]) {
  const uint32_t lane = ptx::lane_idx();
  // Lane r loads the scale of row r, which all columns of the tile share.
  static_assert(kScaleBlock % (2 * kWarpThreads) == 0);
  const uint64_t block =
      uint64_t{matrix} * ceil_div(params.columns, kScaleBlock) + first_column / kScaleBlock;
  const float* const scales = params.x_scales + block * params.rows + row;
  const float own_scale = lane < num_rows ? ptx::ld_global_nc_f32(scales + lane) : 0.0f;
  Elements<XType::kE4M3, 2> values[kTileWarpRows];
  load_warp_tile(params, matrix, row, num_rows, first_column, values);
  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kTileWarpRows; ++r) {
    const float scale = ptx::uint_as_float(ptx::shfl_sync_idx(ptx::float_as_uint(own_scale), r));
    elements[r].words[0] = ptx::float_as_uint(values[r].get(0) * scale);
    elements[r].words[1] = ptx::float_as_uint(values[r].get(1) * scale);
  }
}

// Writes the tile's rows of the result from shared memory, 128 columns of each. All threads.
template <QuantizeConfig kConfig>
FP8GEMM_DEVICE void store_tile_rows(const QuantizeParams& params, uint32_t tile, uint32_t matrix,
                                    uint32_t first_column, uint32_t block) {
  constexpr uint32_t kChunkBytes = 16;
  constexpr uint32_t kRowChunks = kScaleBlock / kChunkBytes;
  constexpr uint32_t kPassRows = kQuantizeThreads / kRowChunks;
  const bool whole = params.values_in_vectors != 0;
  const uint32_t chunk = ptx::thread_idx() % kRowChunks * kChunkBytes;
  const uint32_t out_column = block * kScaleBlock + chunk;
  const uint32_t valid = valid_elements(out_column, kChunkBytes, params.out_columns);
  FP8GEMM_UNROLL
  for (uint32_t pass = 0; pass < tile_columns(kConfig) / kPassRows; ++pass) {
    const uint32_t tile_row = pass * kPassRows + ptx::thread_idx() / kRowChunks;
    const uint32_t row = first_column + tile_row;
    if (row >= params.columns || valid == 0) continue;
    const uint64_t place = (uint64_t{matrix} * params.columns + row) * params.out_columns;
    uint8_t* const values = static_cast<uint8_t*>(params.values) + place + out_column;
    const uint32_t source = tile + tile_row * kTileRowBytes + chunk;
    if (whole) {
      ptx::copy_shared_to_global_16(values, source);
      continue;
    }
    for (uint32_t i = 0; i < valid; i += 4) {
      store_values(values + i, ptx::ld_shared_u32(source + i), valid - i, false);
    }
  }
}

// Writes the values of one lane's columns, 16 bytes each, to shared memory. Eight lanes that write
// at once begin with different columns, so that their rows are in different banks.
template <uint32_t kColumns>
FP8GEMM_DEVICE void write_columns(uint32_t tile, uint32_t (&packed)[kColumns][kTileWarpRows / 4]) {
  const uint32_t lane = ptx::lane_idx();
  const uint32_t place = tile + ptx::warp_idx() * kTileWarpRows;
  const uint32_t first = lane * kColumns / 8 % kColumns;
  // Turns the columns until `first` is at 0, by each bit of it.
  FP8GEMM_UNROLL
  for (uint32_t turn = 1; turn < kColumns; turn *= 2) {
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < kTileWarpRows / 4; ++i) {
      uint32_t words[kColumns];
      FP8GEMM_UNROLL
      for (uint32_t c = 0; c < kColumns; ++c) words[c] = packed[c][i];
      FP8GEMM_UNROLL
      for (uint32_t c = 0; c < kColumns; ++c) {
        packed[c][i] = (first & turn) != 0 ? words[(c + turn) % kColumns] : words[c];
      }
    }
  }
  FP8GEMM_UNROLL
  for (uint32_t c = 0; c < kColumns; ++c) {
    const uint32_t column = lane * kColumns + (first + c) % kColumns;
    ptx::st_shared_v4_u32(place + column * kTileRowBytes, packed[c][0], packed[c][1], packed[c][2],
                          packed[c][3]);
  }
}

// Exchanges the largest magnitudes of one lane's columns with the other warps. All threads.
template <uint32_t kColumns>
FP8GEMM_DEVICE void share_amax(uint32_t smem, uint32_t (&amax)[kColumns]) {
  // The first two columns of all lanes come first: eight bytes of each next to each other.
  constexpr uint32_t kPairBytes = 2 * sizeof(uint32_t);
  constexpr uint32_t kPairsBytes = kWarpThreads * kPairBytes;
  constexpr uint32_t kWarpBytes = kColumns / 2 * kPairsBytes;
  const uint32_t own_place = smem + ptx::lane_idx() * kPairBytes;
  FP8GEMM_UNROLL
  for (uint32_t i = 0; i < kColumns; i += 2) {
    const uint32_t place = own_place + ptx::warp_idx() * kWarpBytes + i / 2 * kPairsBytes;
    ptx::st_shared_v2_u32(place, amax[i], amax[i + 1]);
  }
  sync_threads();
  FP8GEMM_UNROLL
  for (uint32_t w = 0; w < kQuantizeWarps; ++w) {
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < kColumns; i += 2) {
      uint32_t others[2];
      const uint32_t place = own_place + w * kWarpBytes + i / 2 * kPairsBytes;
      ptx::ld_shared_v2_u32(place, others[0], others[1]);
      amax[i] = max(amax[i], others[0]);
      amax[i + 1] = max(amax[i + 1], others[1]);
    }
  }
}

// One tile of 128 rows and tile_columns(kConfig) columns from `first_column` on. All threads.
template <QuantizeConfig kConfig>
FP8GEMM_DEVICE void quantize_tile(const QuantizeParams& params, uint32_t matrix, uint32_t block,
                                  const RowBlock& rows, uint32_t first_column) {
  constexpr uint32_t kColumns = x_vector(kConfig);
  const uint32_t smem = ptx::dynamic_smem();
  const uint32_t warp = ptx::warp_idx();
  const uint32_t column = first_column + kColumns * ptx::lane_idx();
  const uint32_t num_rows = valid_elements(warp * kTileWarpRows, kTileWarpRows, rows.count);
  const uint32_t row = rows.first + warp * kTileWarpRows;
  constexpr bool kScaled = kConfig.x_type == XType::kE4M3;
  Elements<kScaled ? XType::kF32 : kConfig.x_type, kColumns> x[kTileWarpRows];
  if constexpr (kScaled) {
    load_scaled_warp_tile(params, matrix, row, num_rows, first_column, x);
  } else {
    load_warp_tile(params, matrix, row, num_rows, first_column, x);
  }
  const uint64_t out_blocks = ceil_div(params.out_columns, kScaleBlock);
  if constexpr (kConfig.has_rows()) {
    const uint64_t merged_row = uint64_t{matrix} * params.rows + row;
    const uint64_t place = uint64_t{first_column / kScaleBlock} * params.row_scale_pitch;
    write_rows<kConfig>(
        x, {static_cast<uint8_t*>(params.row_values) + merged_row * params.columns + column,
            params.row_scales + place + merged_row,
            valid_elements(warp * kTileWarpRows, kTileWarpRows, rows.written),
            valid_elements(column, kColumns, params.columns), params.columns,
            params.row_values_in_vectors != 0});
    if (block >= out_blocks) return;
  }

  uint32_t amax[kColumns] = {};
  FP8GEMM_UNROLL
  for (uint32_t r = 0; r < kTileWarpRows; ++r) {
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < kColumns; ++i) amax[i] = max(amax[i], magnitude_bits(x[r].get(i)));
  }
  share_amax(smem, amax);
  if constexpr (kConfig.has_rows()) keep_halves(x);

  uint32_t packed[kColumns][kTileWarpRows / 4];
  FP8GEMM_UNROLL
  for (uint32_t i = 0; i < kColumns; ++i) {
    const BlockScale scale = block_scale<kConfig>(amax[i]);
    if (warp == 0 && column + i < params.columns) {
      const uint64_t place = (matrix * out_blocks + block) * params.scale_pitch + column + i;
      ptx::st_global_f32(params.scales + place, scale.scale);
    }
    const Converter<kConfig> convert(scale.inverse);
    FP8GEMM_UNROLL
    for (uint32_t r = 0; r < kTileWarpRows; r += 4) {
      packed[i][r / 4] =
          convert.four(x[r].get(i), x[r + 1].get(i), x[r + 2].get(i), x[r + 3].get(i));
    }
  }
  const uint32_t tile = smem + amax_bytes(kConfig);
  write_columns(tile, packed);
  // Also keeps the next tile's amax from overtaking a warp that still reads this one's.
  sync_threads();
  store_tile_rows<kConfig>(params, tile, matrix, first_column, block);
}

// Runs on   a CTA per 128 columns of the result and tiles_per_cta tiles of its rows, neighbours
//           along columns of x. Each warp has kTileWarpRows rows of x, each lane x_vector(kConfig)
//           columns. Along rows, groups have one block more, as rows in no group may need.
// Smem      (kQuantizeWarps, tile_columns) u32 amax, then (tile_columns, kTileRowBytes) values.
template <QuantizeConfig kConfig>
FP8GEMM_DEVICE void quantize_transposed(const QuantizeParams& params) {
  const uint32_t tiles = ceil_div(params.columns, tile_columns(kConfig));
  const uint32_t parts = ceil_div(tiles, params.tiles_per_cta);
  const uint32_t blocks = row_blocks(kConfig, params.out_columns);
  const uint32_t matrix = ptx::block_idx() / parts / blocks;
  const uint32_t block = ptx::block_idx() / parts % blocks;
  RowBlock rows;
  if constexpr (kConfig.is_grouped()) {
    rows = find_group_rows(params, matrix, block);
  } else {
    const uint32_t count = min(kScaleBlock, params.rows - block * kScaleBlock);
    rows = {block * kScaleBlock, count, count};
  }
  const uint32_t first_tile = ptx::block_idx() % parts * params.tiles_per_cta;
  const uint32_t last_tile = min(first_tile + params.tiles_per_cta, tiles);
  for (uint32_t tile = first_tile; tile < last_tile; ++tile) {
    quantize_tile<kConfig>(params, matrix, block, rows, tile * tile_columns(kConfig));
  }
}

}  // namespace fp8gemm
