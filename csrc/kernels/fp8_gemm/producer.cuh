// SPDX-License-Identifier: Apache-2.0
// Producer roles: everything that moves from global to shared memory ahead of the consumers.
#pragma once
#include <fp8_gemm/a_scales.cuh>
#include <fp8_gemm/pipeline.cuh>
#include <fp8_gemm/tile_scheduler.cuh>
#include <ptx/global.cuh>
#include <ptx/tma.cuh>
#include <ptx/warp.cuh>

namespace fp8gemm {

// Loads one operand tile, or this CTA's half of it for both CTAs of the cluster when the peer works
// on the same rows of the operand. `kShare` is the number of CTAs that share the tile.
template <uint32_t kShare, uint32_t kTileRows>
FP8GEMM_DEVICE void load_operand(const TensorMap* map, uint32_t bar, uint32_t dst, uint32_t k,
                                 uint32_t row) {
  if constexpr (kShare == 1) {
    ptx::cp_async_bulk_tensor_2d_g2s(map, bar, dst, k, row);
  } else {
    constexpr uint32_t kRows = kTileRows / kShare;
    constexpr uint16_t kAllCtas = (1u << kShare) - 1;
    const uint32_t part = ptx::cluster_ctarank() * kRows;
    ptx::cp_async_bulk_tensor_2d_g2s_multicast(map, bar, dst + part * kRowBytes, k, row + part,
                                               kAllCtas);
  }
}

// ---- Operand loader: A, B and the scales that TMA brings ----------------------------------------
//
// Runs on     the first producer warp: all lanes find the tiles, one elected lane loads them.
// Per K block waits empty[stage]; announces the stage's bytes on full[stage]; issues the loads:
//               A    (block_m, 128) fp8, 128B swizzle -> smem.a(stage)
//               B    (block_n, 128) fp8, 128B swizzle -> smem.b(stage)
//               SFA  (sfa_scales) f32,   no swizzle   -> smem.sfa(stage)
//               SFB  (block_n) f32,      no swizzle   -> smem.sfb(stage), with 1x128 scales of B
// Parity      of empty starts at 1: a wait for the phase before the first passes on a fresh
//             barrier.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void load_operands(const GemmParams& params, const Smem<kConfig>& smem) {
  const bool is_issuer = ptx::elect_sync();
  PipelineState<kConfig.num_stages> pipe;
  TileScheduler<kConfig> scheduler(params, smem);
  for (Tile tile; scheduler.next(tile);) {
    if (is_issuer) {
      for (uint32_t kb = tile.k_block; kb < tile.k_block + tile.k_blocks; ++kb, pipe.advance()) {
        const uint32_t full = smem.full(pipe.stage);
        wait_for_free_slot<kConfig>(smem, pipe.stage, pipe.parity);
        ptx::mbarrier_arrive_expect_tx(full, stage_tx_bytes(kConfig));
        load_operand<kConfig.cluster_n, kConfig.block_m>(&params.a, full, smem.a(pipe.stage),
                                                         kb * kBlockK, tile.row);
        load_operand<kConfig.cluster_m, kConfig.block_n>(&params.b, full, smem.b(pipe.stage),
                                                         kb * kBlockK, tile.b_row);
        load_a_scales<kConfig>(&params.sfa, full, smem.sfa(pipe.stage), tile, kb);
        if constexpr (kConfig.scaling == Scaling::k1D1D) {
          ptx::cp_async_bulk_tensor_2d_g2s(&params.sfb, full, smem.sfb(pipe.stage), tile.b_row, kb);
        }
      }
    }
    ptx::bar_warp_sync();
  }
  if constexpr (kConfig.pdl) ptx::griddepcontrol_launch_dependents();
}

// ---- Weight-scale loader: the scales of B -------------------------------------------------------
//
// Runs on     all lanes of the second producer warp. A row of SFB is contiguous along K, so each
//             lane reads the scale of one of 32 consecutive K blocks, one chunk ahead of its use.
// Per K block waits empty[stage]; the lane that holds the scales writes them to smem.sfb(stage) and
//             arrives on full[stage], which releases the write to the consumers.
// Columns     of a tile lie in at most two scale blocks; a row past the group's last one (the
//             phantom tile of an odd cluster, or a tile that ends in its first block) is clamped,
//             never used.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void load_b_scales(const GemmParams& params, const Smem<kConfig>& smem) {
  constexpr uint32_t kBlocks = kConfig.scale_blocks_n();
  const uint32_t lane = ptx::lane_idx();
  const uint32_t last_row = ceil_div(params.n, kScaleBlockN) - 1;
  PipelineState<kConfig.num_stages> pipe;
  TileScheduler<kConfig> scheduler(params, smem);
  for (Tile tile; scheduler.next(tile);) {
    const float* rows[kBlocks];
    float ahead[kBlocks];
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < kBlocks; ++i) {
      const uint32_t row = tile.scale_row + min(tile.column / kScaleBlockN + i, last_row);
      rows[i] = params.sfb_blocks + static_cast<uint64_t>(row) * params.k_blocks + tile.k_block;
      ahead[i] = lane < tile.k_blocks ? ptx::ld_global_f32(rows[i] + lane) : 0.0f;
    }
    for (uint32_t chunk = 0; chunk < tile.k_blocks; chunk += kWarpThreads) {
      float scales[kBlocks];
      const uint32_t next_kb = chunk + kWarpThreads + lane;
      FP8GEMM_UNROLL
      for (uint32_t i = 0; i < kBlocks; ++i) {
        scales[i] = ahead[i];
        if (next_kb < tile.k_blocks) ahead[i] = ptx::ld_global_f32(rows[i] + next_kb);
      }
      const uint32_t count = min(kWarpThreads, tile.k_blocks - chunk);
      for (uint32_t holder = 0; holder < count; ++holder, pipe.advance()) {
        wait_for_free_slot<kConfig>(smem, pipe.stage, pipe.parity);
        // Once the holder arrives the stage may go round: a lane that still waits would miss it.
        ptx::bar_warp_sync();
        if (lane == holder) {
          FP8GEMM_UNROLL
          for (uint32_t i = 0; i < kBlocks; ++i) {
            ptx::st_shared_f32(smem.sfb(pipe.stage) + i * sizeof(float), scales[i]);
          }
          ptx::mbarrier_arrive(smem.full(pipe.stage));
        }
      }
    }
  }
}

}  // namespace fp8gemm
