// SPDX-License-Identifier: Apache-2.0
// The producer/consumer pipeline: its position, its barriers and who arrives on them.
//
//   full[stage]   count: the operand loader (with the bytes of what TMA brings) and, with 128x128
//                 scales of B, the SFB loader. Waited on by the consumers, first parity 0.
//   empty[stage]  count: consumer warps of all CTAs that share operands, because each writes into
//                 the slots of all (multicast). Waited on by both loaders, first parity 1.
//   summed[wg]    count 1: thread 0 of consumer warpgroup wg, with the bytes of the partial sums
//                 that every CTA of the cluster stores here. Waited on by that warpgroup, once.
//                 Only with split K.
//   c_full[wg]    count 1: thread 0 of consumer warpgroup wg, with the bytes of its accumulator
//                 tile. Waited on by that warpgroup, first parity 0. Only when accumulating.
#pragma once
#include <ptx/mbarrier.cuh>
#include <shared/smem_layout.h>

namespace fp8gemm {

// Position in the ring of stages. It carries on across tiles, so loads run ahead into the next one.
template <uint32_t kStages>
struct PipelineState {
  uint32_t stage = 0;
  uint32_t parity = 0;

  FP8GEMM_DEVICE void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Addresses in this CTA's shared memory.
template <GemmConfig kConfig>
struct Smem {
  static constexpr SmemLayout kLayout = make_smem_layout(kConfig);
  uint32_t base;

  FP8GEMM_DEVICE uint32_t a(uint32_t stage) const {
    return base + kLayout.a + stage * kLayout.a_stage_bytes;
  }
  FP8GEMM_DEVICE uint32_t b(uint32_t stage) const {
    return base + kLayout.b + stage * kLayout.b_stage_bytes;
  }
  FP8GEMM_DEVICE uint32_t sfa(uint32_t stage) const {
    return base + kLayout.sfa + stage * kLayout.sfa_stage_bytes;
  }
  FP8GEMM_DEVICE uint32_t sfb(uint32_t stage) const {
    return base + kLayout.sfb + stage * kLayout.sfb_stage_bytes;
  }
  FP8GEMM_DEVICE uint32_t d(uint32_t consumer, uint32_t slice) const {
    constexpr uint32_t kSlabs = d_slabs(kConfig);
    return base + kLayout.d + (consumer * kSlabs + slice % kSlabs) * kLayout.d_slab_bytes;
  }
  FP8GEMM_DEVICE uint32_t full(uint32_t stage) const {
    return base + kLayout.full + stage * kBarrierBytes;
  }
  FP8GEMM_DEVICE uint32_t empty(uint32_t stage) const {
    return base + kLayout.empty + stage * kBarrierBytes;
  }
  FP8GEMM_DEVICE uint32_t c_full(uint32_t consumer) const {
    return base + kLayout.c_full + consumer * kBarrierBytes;
  }
  FP8GEMM_DEVICE uint32_t summed(uint32_t consumer) const {
    return base + kLayout.summed + consumer * kBarrierBytes;
  }
  // Place of thread `thread` of the warpgroup for the sums of 8 columns from one CTA.
  FP8GEMM_DEVICE uint32_t partials(uint32_t consumer, uint32_t source, uint32_t columns_8,
                                   uint32_t thread) const {
    constexpr uint32_t kColumns8 = kConfig.stored_columns() / 8;
    const uint32_t slot = (consumer * kConfig.split_k + source) * kColumns8 + columns_8;
    return base + kLayout.partials + (slot * kWarpgroupThreads + thread) * 4 * sizeof(float);
  }
  FP8GEMM_DEVICE uint32_t groups() const { return base + kLayout.groups; }
};

// Waits until every CTA that reads what this one loads is done with the slot. `parity` is that of
// the coming phase: the wait is for the one before, which on a fresh barrier has passed. CTA scope
// is enough, since nothing that another CTA has written is read after it.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void wait_for_free_slot(const Smem<kConfig>& smem, uint32_t stage, uint32_t parity) {
  ptx::mbarrier_wait_parity(smem.empty(stage), parity ^ 1);
}

// Initializes every barrier. One thread; the CTA or cluster must synchronize before any use.
template <GemmConfig kConfig>
FP8GEMM_DEVICE void init_barriers(const Smem<kConfig>& smem) {
  constexpr uint32_t kConsumerWarps = kConfig.num_consumers * kWarpgroupWarps;
  for (uint32_t stage = 0; stage < kConfig.num_stages; ++stage) {
    ptx::mbarrier_init(smem.full(stage), kConfig.scaling == Scaling::k1D2D ? 2 : 1);
    ptx::mbarrier_init(smem.empty(stage), kConsumerWarps * kConfig.sharing());
  }
  for (uint32_t consumer = 0; consumer < kConfig.num_consumers; ++consumer) {
    ptx::mbarrier_init(smem.c_full(consumer), 1);
    ptx::mbarrier_init(smem.summed(consumer), 1);
  }
  ptx::fence_mbarrier_init_release_cluster();
}

}  // namespace fp8gemm
