// SPDX-License-Identifier: Apache-2.0
// Epilogue: registers -> shared memory -> output, one consumer warpgroup at a time.
//
// Each warpgroup has its own part of smem.d, its own named barrier and its own TMA stores, issued
// and tracked by its thread 0. Element (row, column) of a row slice lies in box
// column / d_box_columns, at the place, swizzled or not, where TMA expects it.
#pragma once
#include <fp8_gemm/barriers.cuh>
#include <fp8_gemm/pipeline.cuh>
#include <fp8_gemm/tile_scheduler.cuh>
#include <ptx/global.cuh>
#include <ptx/tma.cuh>
#include <ptx/warp.cuh>

namespace fp8gemm {

// Address of `byte` (a multiple of 4) of `row` of one row slice of the output tile. TMA's swizzle
// XORs the number of a 16-byte chunk, bits 4-6 of its address, with bits 7-9, as far as a row of a
// box is long. `exchange` is XORed too, swizzle or not.
template <GemmConfig kConfig>
FP8GEMM_DEVICE uint32_t d_address(uint32_t slice_base, uint32_t row, uint32_t byte,
                                  uint32_t exchange = 0) {
  constexpr uint32_t kSwizzle = d_swizzle_bytes(kConfig);
  if constexpr (kSwizzle == 0) {
    return slice_base + row * d_row_bytes(kConfig) + (byte ^ (exchange * 16));
  } else {
    const uint32_t box = slice_base + (byte / kSwizzle) * (kMmaM * kSwizzle);
    const uint32_t turn = row / (128 / kSwizzle) % (kSwizzle / 16);
    const uint32_t chunk = (byte % kSwizzle / 16) ^ exchange ^ turn;
    return box + row * kSwizzle + chunk * 16 + byte % 16;
  }
}

// Order in which a thread handles the blocks of 8 columns of its fragment. A pass over smem.d is of
// 32 bytes in each of four rows of float32, or of 16 bytes in each of eight rows of 16-bit results.
// A swizzle keeps the latter apart. It leads every two rows of float32 to the same banks, and so
// does the length of rows without a swizzle: there every other row, or set of rows, exchanges
// neighbouring blocks (with a swizzle pairs of them), and the pass covers all banks once.
template <GemmConfig kConfig>
struct BlockOrder {
  static constexpr uint32_t kBytes = element_bytes(kConfig.d_type);
  // What the length of a row is a multiple of: 32 or 64 bytes, or all banks.
  static constexpr uint32_t kStep = gcd(d_row_bytes(kConfig), 128u);
  // Distance of the blocks that are exchanged; 0 where none are.
  static constexpr uint32_t kDistance =
      kBytes == 4 || d_swizzle_bytes(kConfig) == 0 ? kStep / (16 * kBytes) : 0;

  // What the chunks of `row` exchange with: see d_address.
  FP8GEMM_DEVICE static uint32_t exchange(uint32_t row) {
    return row / (128 / kStep) % 2 != 0 ? kDistance * kBytes / 2 : 0;
  }

  // Address of elements `i` and `i` + 1 of the fragment, after `apply`. `row` is that of element 0.
  FP8GEMM_DEVICE static uint32_t address(uint32_t slice_base, uint32_t row, uint32_t i) {
    const uint32_t byte = (8 * (i / 4) + 2 * (ptx::lane_idx() % 4)) * kBytes;
    return d_address<kConfig>(slice_base, row + 8 * (i / 2 % 2), byte,
                              exchange(ptx::lane_idx() / 4));
  }

  // Of words of the fragment: four to a block, or two where they are pairs of 16-bit elements.
  template <typename Word, uint32_t kWords>
  FP8GEMM_DEVICE static void apply(Word (&words)[kWords]) {
    const bool exchanges = exchange(ptx::lane_idx() / 4) != 0;
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < kWords; ++i) {
      const uint32_t other = i ^ (kDistance * kBytes);
      if (other <= i) continue;
      const Word first = words[i];
      const Word second = words[other];
      words[i] = exchanges ? second : first;
      words[other] = exchanges ? first : second;
    }
  }
};

// Starts loading the accumulator tile into smem.d, under the main loop. Thread 0 of the warpgroup.
// The previous tile's stores must have read smem.d before; the loads overwrite it.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void prefetch_accumulator(const GemmParams& params, const Smem<kConfig>& smem,
                                         uint32_t consumer, const Tile& tile) {
  if constexpr (kConfig.accumulate) {
    constexpr uint32_t kBoxes = kConfig.stored_columns() / d_box_columns(kConfig);
    constexpr uint32_t kBytes = kConfig.row_slices() * d_box_rows(kConfig) * d_row_bytes(kConfig);
    if (ptx::thread_idx() % kWarpgroupThreads != 0) return;
    ptx::cp_async_bulk_wait_group_read<0>();
    ptx::mbarrier_arrive_expect_tx(smem.c_full(consumer), kBytes);
    for (uint32_t slice = 0; slice < kConfig.row_slices(); ++slice) {
      const uint32_t row = tile.d_row + consumer * kConfig.consumer_rows() + slice * kMmaM;
      for (uint32_t box = 0; box < kBoxes; ++box) {
        ptx::cp_async_bulk_tensor_2d_g2s(&params.c, smem.c_full(consumer),
                                         smem.d(consumer, slice) + box * d_box_bytes(kConfig),
                                         tile.column + box * d_box_columns(kConfig), row);
      }
    }
  }
}

template <OutType kType>
FP8GEMM_DEVICE void add_pair(uint32_t pair, float& low, float& high) {
  if constexpr (kType == OutType::kBF16) {
    low += ptx::uint_as_float(pair << 16);
    high += ptx::uint_as_float(pair & 0xffff0000u);
  } else {
    low += ptx::cvt_f32_f16(pair & 0xffffu);
    high += ptx::cvt_f32_f16(pair >> 16);
  }
}

// accum += c, from where prefetch_accumulator put it; each thread reads its own fragment, in
// BlockOrder. That of float32 stays in it.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void add_accumulator(uint32_t slice_base,
                                    float (&accum)[kConfig.stored_columns() / 2]) {
  const uint32_t row = (ptx::warp_idx() % kWarpgroupWarps) * 16 + ptx::lane_idx() / 4;
  using Order = BlockOrder<kConfig>;
  FP8GEMM_UNROLL
  for (uint32_t i = 0; i < kConfig.stored_columns() / 2; i += 8) {
    if constexpr (kConfig.d_type == OutType::kF32) {
      FP8GEMM_UNROLL
      for (uint32_t j = i; j < i + 8; j += 2) {
        float x;
        float y;
        ptx::ld_shared_v2_f32(Order::address(slice_base, row, j), x, y);
        accum[j] += x;
        accum[j + 1] += y;
      }
    } else {
      uint32_t pairs[4];
      FP8GEMM_UNROLL
      for (uint32_t j = 0; j < 4; ++j) {
        pairs[j] = ptx::ld_shared_u32(Order::address(slice_base, row, i + 2 * j));
      }
      Order::apply(pairs);
      FP8GEMM_UNROLL
      for (uint32_t j = 0; j < 4; ++j) {
        add_pair<kConfig.d_type>(pairs[j], accum[i + 2 * j], accum[i + 2 * j + 1]);
      }
    }
  }
}

template <OutType kType>
FP8GEMM_DEVICE uint32_t pack_pair(float low, float high) {
  if constexpr (kType == OutType::kBF16) {
    return ptx::cvt_rn_bf16x2_f32(high, low);
  } else {
    return ptx::cvt_rn_f16x2_f32(high, low);
  }
}

// Writes one row slice of a thread's accumulators to its place in smem.d, rounded to the output
// type. Those of float32 are in BlockOrder.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void write_slice(uint32_t slice_base,
                                const float (&accum)[kConfig.stored_columns() / 2]) {
  const uint32_t warp_row = (ptx::warp_idx() % kWarpgroupWarps) * 16;
  const uint32_t lane = ptx::lane_idx();
  using Order = BlockOrder<kConfig>;
  if constexpr (kConfig.d_type == OutType::kF32) {
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < kConfig.stored_columns() / 2; i += 2) {
      ptx::st_shared_v2_f32(Order::address(slice_base, warp_row + lane / 4, i), accum[i],
                            accum[i + 1]);
    }
  } else {
    // One stmatrix writes 16 rows of 16 columns: lanes 0-15 address the rows of its left half.
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < kConfig.stored_columns() / 2; i += 8) {
      uint32_t pairs[4];
      FP8GEMM_UNROLL
      for (uint32_t j = 0; j < 4; ++j) {
        pairs[j] = pack_pair<kConfig.d_type>(accum[i + 2 * j], accum[i + 2 * j + 1]);
      }
      Order::apply(pairs);
      const uint32_t half = (lane / 16) ^ Order::exchange(lane % 16);
      const uint32_t byte = (2 * i + 8 * half) * element_bytes(kConfig.d_type);
      ptx::stmatrix_x4(d_address<kConfig>(slice_base, warp_row + lane % 16, byte), pairs[0],
                       pairs[1], pairs[2], pairs[3]);
    }
  }
}

// Sets rows that are padding to zero, whatever they were computed from. `first_row` is the row
// slice's first row within the tile.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void clear_padding_rows(const GemmParams& params, const Tile& tile,
                                       uint32_t first_row,
                                       float (&accum)[kConfig.stored_columns() / 2]) {
  const uint32_t row = first_row + (ptx::warp_idx() % kWarpgroupWarps) * 16 + ptx::lane_idx() / 4;
  FP8GEMM_UNROLL
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t half_row = row + 8 * half;
    bool is_valid = half_row < tile.valid_rows;
    if constexpr (kConfig.kind == GemmKind::kContiguous) {
      is_valid = is_valid && ptx::ld_global_s32(params.group_data + tile.row + half_row) >= 0;
    }
    if (is_valid) continue;
    FP8GEMM_UNROLL
    for (uint32_t i = 2 * half; i < kConfig.stored_columns() / 2; i += 4) {
      accum[i] = 0.0f;
      accum[i + 1] = 0.0f;
    }
  }
}

// Copies the first `rows` rows of a row slice from smem.d: what a TMA store, which knows no end but
// the tensor's, would write into the next group. All threads of the warpgroup.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void copy_rows(const GemmParams& params, uint32_t slice_base, uint32_t d_row,
                              uint32_t column, uint32_t rows) {
  constexpr uint32_t kRowChunks = d_row_bytes(kConfig) / 16;
  const uint64_t first_byte = uint64_t{column} * element_bytes(kConfig.d_type);
  for (uint32_t i = ptx::thread_idx() % kWarpgroupThreads; i < rows * kRowChunks;
       i += kWarpgroupThreads) {
    const uint32_t row = i / kRowChunks;
    const uint32_t byte = i % kRowChunks * 16;
    const uint64_t row_byte = first_byte + byte;
    if (row_byte >= params.d_pitch_bytes) continue;
    uint8_t* dst = static_cast<uint8_t*>(params.d_base) +
                   (uint64_t{d_row} + row) * params.d_pitch_bytes + row_byte;
    ptx::copy_shared_to_global_16(dst, d_address<kConfig>(slice_base, row, byte));
  }
}

// Stores one row slice of the tile from smem.d. All threads of the warpgroup, after a barrier
// behind their writes; thread 0 issues.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void store_slice(const GemmParams& params, uint32_t slice_base, uint32_t consumer,
                                uint32_t first_row, const Tile& tile) {
  constexpr uint32_t kBoxes = kConfig.stored_columns() / d_box_columns(kConfig);
  if constexpr (kConfig.limits_rows()) {
    if (first_row + d_box_rows(kConfig) > tile.stored_rows) {
      const uint32_t rows = tile.stored_rows > first_row ? tile.stored_rows - first_row : 0;
      copy_rows<kConfig>(params, slice_base, tile.d_row + first_row, tile.column, rows);
      if constexpr (kConfig.accumulate) {
        // Thread 0 loads the next accumulator tile into the slab that the others still read.
        ptx::fence_proxy_async_shared_cta();
        sync_consumer(consumer);
      }
      return;
    }
  }
  if (ptx::thread_idx() % kWarpgroupThreads != 0) return;
  for (uint32_t box = 0; box < kBoxes; ++box) {
    ptx::cp_async_bulk_tensor_2d_s2g(&params.d, slice_base + box * d_box_bytes(kConfig),
                                     tile.column + box * d_box_columns(kConfig),
                                     tile.d_row + first_row);
  }
  ptx::cp_async_bulk_commit_group();
}

// ---- Epilogue -----------------------------------------------------------------------------------
//
// Runs on     one consumer warpgroup; kFirstConsumerBarrier + consumer is its own barrier.
// Order       per set of slabs (all row slices of the tile, or one after the other where slabs are
//             reused): thread 0 waits until its previous stores have read the slabs (when
//             accumulating it did so in prefetch_accumulator, and c_full says that the accumulator
//             landed); barrier; all threads write and fence; barrier; thread 0 issues the stores.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void store_tile(const GemmParams& params, const Smem<kConfig>& smem,
                               uint32_t consumer, const Tile& tile, uint32_t c_parity,
                               float (&accum)[kConfig.row_slices()][kConfig.stored_columns() / 2]) {
  constexpr uint32_t kSlabs = d_slabs(kConfig);
  const uint32_t tile_row = consumer * kConfig.consumer_rows();
  if constexpr (kConfig.d_type == OutType::kF32) {
    using Order = BlockOrder<kConfig>;
    FP8GEMM_UNROLL
    for (uint32_t slice = 0; slice < kConfig.row_slices(); ++slice) Order::apply(accum[slice]);
  }
  FP8GEMM_UNROLL
  for (uint32_t first = 0; first < kConfig.row_slices(); first += kSlabs) {
    if constexpr (kConfig.accumulate) {
      ptx::mbarrier_wait_parity(smem.c_full(consumer), c_parity);
      FP8GEMM_UNROLL
      for (uint32_t slice = first; slice < first + kSlabs; ++slice) {
        add_accumulator<kConfig>(smem.d(consumer, slice), accum[slice]);
      }
      ptx::bar_warp_sync();  // a warp overwrites only what it has read itself
    } else {
      if (ptx::thread_idx() % kWarpgroupThreads == 0) ptx::cp_async_bulk_wait_group_read<0>();
      sync_consumer(consumer);
    }
    FP8GEMM_UNROLL
    for (uint32_t slice = first; slice < first + kSlabs; ++slice) {
      if constexpr (kConfig.has_padding_rows()) {
        clear_padding_rows<kConfig>(params, tile, tile_row + slice * kMmaM, accum[slice]);
        ptx::bar_warp_sync();  // stmatrix is for converged warps
      }
      write_slice<kConfig>(smem.d(consumer, slice), accum[slice]);
    }
    ptx::fence_proxy_async_shared_cta();
    sync_consumer(consumer);
    FP8GEMM_UNROLL
    for (uint32_t slice = first; slice < first + kSlabs; ++slice) {
      const uint32_t first_row = tile_row + slice * kMmaM;
      store_slice<kConfig>(params, smem.d(consumer, slice), consumer, first_row, tile);
    }
  }
}

// Before a thread exits, its stores must have read shared memory.
FP8GEMM_DEVICE void finish_stores() { ptx::cp_async_bulk_wait_group_read<0>(); }

}  // namespace fp8gemm
