// SPDX-License-Identifier: Apache-2.0
// Consumer role of every GEMM kernel: wgmma, promotion with scales, epilogue.
#pragma once
#include <fp8_gemm/a_scales.cuh>
#include <fp8_gemm/epilogue.cuh>
#include <fp8_gemm/pipeline.cuh>
#include <fp8_gemm/promotion.cuh>
#include <fp8_gemm/split_k.cuh>
#include <fp8_gemm/tile_scheduler.cuh>
#include <mma/smem_descriptor.cuh>
#include <mma/wgmma_fp8.cuh>
#include <ptx/wgmma.cuh>

namespace fp8gemm {

// Starts one row slice of one K block: partial = a (64, 128) * b (block_n, 128)^T. Operands are
// given by their `descriptor_start`.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void start_multiply(uint32_t a, uint32_t b, float (&partial)[kConfig.block_n / 2]) {
  const uint64_t a_desc = make_k_major_descriptor(a);
  const uint64_t b_desc = make_k_major_descriptor(b);
  ptx::fence_registers(partial);
  ptx::wgmma_fence();
  FP8GEMM_UNROLL
  for (uint32_t k = 0; k < kBlockK / kMmaK; ++k) {
    const uint64_t step = descriptor_offset(k * kMmaK);
    ptx::wgmma_m64k32<kConfig.a_type, kConfig.b_type, kConfig.block_n>(partial, a_desc + step,
                                                                       b_desc + step, k != 0);
  }
  ptx::wgmma_commit_group();
  ptx::fence_registers(partial);
}

// Waits for it; then `partial` may be read.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void finish_multiply(float (&partial)[kConfig.block_n / 2]) {
  ptx::wgmma_wait_group<0>();
  ptx::fence_registers(partial);
}

// Tells the loaders of every CTA that shares operands that this warp is done with `stage`: the
// peer's multicast writes into our slot, ours into the peer's. Only reads are over, and they are
// when their values are here: a release at cluster scope, with its memory barriers, would order
// nothing more.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void release_stage(const Smem<kConfig>& smem, uint32_t stage, uint32_t lane) {
  ptx::bar_warp_sync();  // the arriving lane speaks for all: what they read comes before
  if constexpr (kConfig.sharing() == 1) {
    if (lane == 0) ptx::mbarrier_arrive(smem.empty(stage));
  } else {
    if (lane < kConfig.sharing()) ptx::mbarrier_arrive_cluster(smem.empty(stage), lane);
  }
}

// ---- Consumer: shared memory -> tensor core -> registers -> output ------------------------------
//
// Runs on     one warpgroup, which owns consumer_rows() rows of the tile from accumulation to store
//             and never waits for another: one's epilogue runs under the other's wgmma.
// Per K block waits full[stage]; per row slice (64 rows) runs 4 wgmma from zero, under the first
//             ones reads the scales, and adds the scaled partial sums to float32 accumulators.
//             After the last wgmma one lane per warp and CTA that shares operands arrives on
//             empty[stage].
// Registers   row slices * block_n / 2 accumulators and block_n / 2 partial sums per thread.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void consume(const GemmParams& params, const Smem<kConfig>& smem,
                            uint32_t consumer) {
  constexpr uint32_t kRowSlices = kConfig.row_slices();
  constexpr uint32_t kFragment = kConfig.block_n / 2;
  constexpr SmemLayout kLayout = Smem<kConfig>::kLayout;
  const uint32_t lane = ptx::lane_idx();
  const uint32_t first_row = consumer * kConfig.consumer_rows();
  const uint32_t fragment_row = (ptx::warp_idx() % kWarpgroupWarps) * 16 + lane / 4;
  // Tiles of fewer than 64 rows have no scales for the rows they do not have.
  const bool has_rows = kConfig.block_m >= kMmaM || fragment_row + 8 < kConfig.block_m;
  const uint32_t tile_scale_row = first_row + (has_rows ? fragment_row : 0);

  const uint32_t a_start = descriptor_start(smem.a(0) + first_row * kRowBytes);
  const uint32_t b_start = descriptor_start(smem.b(0));
  PipelineState<kConfig.num_stages> pipe;
  TileScheduler<kConfig> scheduler(params, smem);
  uint32_t c_parity = 0;
  for (Tile tile; scheduler.next(tile);) {
    const uint32_t first_block_columns = kScaleBlockN - tile.column % kScaleBlockN;
    const uint32_t scale_row = tile_scale_row + scales_before<kConfig>(tile);
    prefetch_accumulator<kConfig>(params, smem, consumer, tile);
    float accum[kRowSlices][kFragment];
    FP8GEMM_UNROLL
    for (uint32_t slice = 0; slice < kRowSlices; ++slice) {
      FP8GEMM_UNROLL
      for (uint32_t i = 0; i < kFragment; ++i) accum[slice][i] = 0.0f;
    }
    uint32_t left = tile.k_blocks;
    if (kConfig.limits_rows() && first_row >= tile.valid_rows) {
      // None of these rows is a product: the slots go round, and nothing is multiplied.
      for (; left > 0; --left, pipe.advance()) {
        ptx::mbarrier_wait_parity(smem.full(pipe.stage), pipe.parity);
        release_stage<kConfig>(smem, pipe.stage, lane);
      }
    }
    for (; left > 0; --left, pipe.advance()) {
      BlockScales<kConfig> scales;
      float partial[kFragment];
      const uint32_t a = a_start + pipe.stage * descriptor_offset(kLayout.a_stage_bytes);
      const uint32_t b = b_start + pipe.stage * descriptor_offset(kLayout.b_stage_bytes);
      ptx::mbarrier_wait_parity(smem.full(pipe.stage), pipe.parity);
      // wgmma is for converged warps: lanes come out of a wait, and one of them out of an arrival.
      ptx::bar_warp_sync();
      FP8GEMM_UNROLL
      for (uint32_t slice = 0; slice < kRowSlices; ++slice) {
        start_multiply<kConfig>(a + slice * descriptor_offset(kMmaM * kRowBytes), b, partial);
        if (slice == 0) scales.read(smem, pipe.stage, scale_row);
        finish_multiply<kConfig>(partial);
        if (slice + 1 == kRowSlices) release_stage<kConfig>(smem, pipe.stage, lane);
        scales.promote(partial, slice, first_block_columns, accum[slice]);
      }
    }
    if constexpr (kConfig.split_k > 1) {
      float sums[1][kConfig.stored_columns() / 2];
      sum_over_cluster<kConfig>(smem, consumer, accum[0], sums[0]);
      tile.column += ptx::cluster_ctarank() * kConfig.stored_columns();
      store_tile<kConfig>(params, smem, consumer, tile, c_parity, sums);
    } else {
      store_tile<kConfig>(params, smem, consumer, tile, c_parity, accum);
    }
    c_parity ^= 1;
    // Only a warp that is known to have converged may keep descriptors in uniform registers.
    ptx::bar_warp_sync();
  }
  finish_stores();
}

}  // namespace fp8gemm
