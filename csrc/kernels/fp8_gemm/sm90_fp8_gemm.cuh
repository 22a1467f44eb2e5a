// SPDX-License-Identifier: Apache-2.0
// d[g] (m, n) = [c +] sum over K blocks kb of sfa[kb, row] * sfb[g, column, kb]
//                                        * (a[row, kb] . b[g, column, kb])
//
// Persistent, warp-specialized FP8 GEMM for sm_90a, dense or of groups: consumer warpgroups first,
// one producer warpgroup last. Launched by gemm/sm90_fp8_gemm.cc; calls consumer.cuh and
// producer.cuh.
#pragma once
#include <fp8_gemm/barriers.cuh>
#include <fp8_gemm/consumer.cuh>
#include <fp8_gemm/grouped_tiles.cuh>
#include <fp8_gemm/producer.cuh>
#include <fp8_gemm/promotion_1d1d.cuh>

namespace fp8gemm {

// Warps of the producer warpgroup and what they do; the others only give up their registers.
inline constexpr uint32_t kOperandLoaderWarp = 0;
inline constexpr uint32_t kBScaleLoaderWarp = 1;
inline constexpr uint32_t kGroupTableWarp = 2;  // before the roles start

template <GemmConfig kConfig>
FP8GEMM_DEVICE void sm90_fp8_gemm(const GemmParams& params) {
  constexpr uint32_t kConsumerWarps = kConfig.num_consumers * kWarpgroupWarps;
  // Behind a shuffle ptxas keeps the address in a uniform register. It would work it out again for
  // every K block otherwise, from the CTA's rank in the cluster, which takes long to read.
  const Smem<kConfig> smem{ptx::shfl_sync_idx(ptx::dynamic_smem(), 0)};
  const uint32_t warp = ptx::warp_idx();

  if (warp == kConsumerWarps + kOperandLoaderWarp) {
    if (ptx::elect_sync()) {
      ptx::prefetch_tensormap(&params.a);
      ptx::prefetch_tensormap(&params.b);
      ptx::prefetch_tensormap(&params.sfa);
      ptx::prefetch_tensormap(&params.d);
      if constexpr (kConfig.scaling == Scaling::k1D1D) ptx::prefetch_tensormap(&params.sfb);
      if constexpr (kConfig.accumulate) ptx::prefetch_tensormap(&params.c);
      init_barriers<kConfig>(smem);
    }
  }
  if constexpr (kConfig.pdl) ptx::griddepcontrol_wait();
  if constexpr (kConfig.has_group_table()) {
    const GroupTable<kConfig> groups{smem.groups()};
    if (warp == kConsumerWarps + kGroupTableWarp) groups.build(params);
  }
  // Peers arrive on our barriers and write into our slots: they must see them initialized. A group
  // table is for all warps of its CTA.
  sync_cluster<kConfig, kConfig.has_group_table()>();

  if (warp >= kConsumerWarps) {
    if constexpr (kConfig.moves_registers()) ptx::setmaxnreg_dec<kConfig.producer_registers()>();
    if (warp == kConsumerWarps + kOperandLoaderWarp) {
      load_operands<kConfig>(params, smem);
    } else if (kConfig.scaling == Scaling::k1D2D && warp == kConsumerWarps + kBScaleLoaderWarp) {
      load_b_scales<kConfig>(params, smem);
    }
  } else {
    if constexpr (kConfig.moves_registers()) ptx::setmaxnreg_inc<kConfig.consumer_registers()>();
    consume<kConfig>(params, smem, warp / kWarpgroupWarps);
  }
  // A peer may still multicast into this CTA or arrive on its barriers. With K split none does: its
  // sums are the last that comes, and consumers have waited for them.
  if constexpr (kConfig.sharing() > 1) sync_cluster<kConfig>();
}

}  // namespace fp8gemm
