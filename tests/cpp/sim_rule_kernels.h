// SPDX-License-Identifier: Apache-2.0
// One kernel for each rule of docs/simulator_rules.md that sim_kernels.h does not break: `kBroken`
// breaks the rule, and without it the same instructions keep it. One warpgroup; clusters of one or
// two.
#pragma once
#include "sim_kernels.h"

namespace sim_test::rules {

inline constexpr uint32_t kThreads = 128;
inline constexpr uint32_t kBarrier = 16 * 1024;  // offset; tiles lie before it
inline constexpr uint32_t kSmemBytes = kBarrier + 2048;

inline uint32_t Bar(uint32_t index = 0) { return ptx::dynamic_smem() + kBarrier + 8 * index; }
inline bool IsFirst() { return ptx::thread_idx() == 0; }

inline void SyncCluster() {
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
}

inline void InitBarrier() {
  if (IsFirst()) {
    ptx::mbarrier_init(Bar(), 1);
    ptx::fence_mbarrier_init_release_cluster();
  }
  ptx::barrier_sync(0, kThreads);
}

// ---- mbarrier -----------------------------------------------------------------------------------

template <bool kBroken>
void MbarrierIsRead(const Params&) {
  InitBarrier();
  if (!IsFirst()) return;
  ptx::st_shared_u32(ptx::dynamic_smem(), 1);
  ptx::ld_shared_u32(kBroken ? Bar() : ptx::dynamic_smem());
}

template <bool kBroken>
void PhaseIsNotSeen(const Params&) {
  InitBarrier();
  if (!IsFirst()) return;
  ptx::mbarrier_arrive(Bar());
  if (!kBroken) ptx::mbarrier_wait_parity(Bar(), 0);
  ptx::mbarrier_arrive(Bar());
}

template <bool kBroken>
void CountOfZero(const Params&) {
  if (IsFirst()) ptx::mbarrier_init(Bar(), kBroken ? 0 : 1);
}

template <bool kBroken>
void CountTooHigh(const Params&) {
  if (IsFirst()) ptx::mbarrier_init(Bar(), (1u << 20) - (kBroken ? 0 : 1));
}

template <bool kBroken>
void MisalignedMbarrier(const Params&) {
  if (IsFirst()) ptx::mbarrier_init(Bar() + (kBroken ? 4 : 0), 1);
}

template <bool kBroken>
void TooManyMbarriers(const Params&) {
  if (!IsFirst()) return;
  for (uint32_t i = 0; i < 160 + (kBroken ? 1 : 0); ++i) ptx::mbarrier_init(Bar(i), 1);
}

template <bool kBroken>
void ExpectTooMany(const Params&) {
  InitBarrier();
  if (IsFirst()) ptx::mbarrier_arrive_expect_tx(Bar(), (1u << 20) - (kBroken ? 0 : 1));
}

template <bool kBroken>
void TooManyArrivals(const Params&) {
  if (!IsFirst()) return;
  ptx::mbarrier_init(Bar(), kBroken ? 1 : 2);
  ptx::mbarrier_arrive_expect_tx(Bar(), 16);
  ptx::mbarrier_arrive(Bar());
}

template <bool kBroken>
void ParityOfTwo(const Params&) {
  InitBarrier();
  if (IsFirst()) ptx::mbarrier_wait_parity(Bar(), kBroken ? 2 : 1);
}

// ---- Clusters -----------------------------------------------------------------------------------

template <bool kBroken>
void ArriveOutsideCluster(const Params&) {
  InitBarrier();
  SyncCluster();
  if (IsFirst()) ptx::mbarrier_arrive_cluster(Bar(), kBroken ? 2 : ptx::cluster_ctarank());
  SyncCluster();
}

// Stores into CTA `peer`, and waits for what comes here.
inline void ExchangeWith(uint32_t peer, bool waits = true, bool reads_before = false) {
  if (IsFirst()) {
    ptx::mbarrier_arrive_expect_tx(Bar(), 16);
    ptx::st_async_v4_f32(ptx::dynamic_smem(), Bar(), peer, 1, 2, 3, 4);
  }
  SyncCluster();
  if (IsFirst() && reads_before) ptx::ld_shared_f32(ptx::dynamic_smem());
  if (IsFirst() && waits) ptx::mbarrier_wait_parity_cluster(Bar(), 0);
}

template <bool kBroken>
void StoreBeforeStart(const Params&) {
  InitBarrier();
  if (!kBroken) SyncCluster();
  ExchangeWith(ptx::cluster_ctarank() ^ 1);
}

template <bool kBroken>
void StoreOutsideCluster(const Params&) {
  InitBarrier();
  SyncCluster();
  ExchangeWith(kBroken ? 2 : ptx::cluster_ctarank() ^ 1);
}

template <bool kBroken>
void StoreIsNotAwaited(const Params&) {
  InitBarrier();
  SyncCluster();
  ExchangeWith(ptx::cluster_ctarank() ^ 1, !kBroken);
}

template <bool kBroken>
void ReadBeforeWait(const Params&) {
  InitBarrier();
  SyncCluster();
  ExchangeWith(ptx::cluster_ctarank() ^ 1, true, kBroken);
}

// Within a cluster of one PTX leaves it undefined.
template <bool kBroken>
void StoreAlone(const Params&) {
  InitBarrier();
  if (kBroken) ExchangeWith(0);
}

template <bool kBroken>
void RelaxedArrivalOfData(const Params&) {
  if (IsFirst()) ptx::st_shared_u32(ptx::dynamic_smem(), 1);
  kBroken ? ptx::barrier_cluster_arrive_relaxed() : ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
  if (ptx::warp_idx() == 1) ptx::ld_shared_u32(ptx::dynamic_smem());
}

// A peer's barrier, which a fence shows without a release.
template <bool kBroken>
void RelaxedArrivalOfBarrier(const Params&) {
  if (IsFirst()) {
    ptx::mbarrier_init(Bar(), 1);
    if (!kBroken) ptx::fence_mbarrier_init_release_cluster();
  }
  ptx::bar_warp_sync();
  ptx::barrier_cluster_arrive_relaxed();
  ptx::barrier_cluster_wait();
  if (ptx::thread_idx() == 32) ptx::mbarrier_arrive_cluster(Bar(), ptx::cluster_ctarank() ^ 1);
  SyncCluster();
}

// st.async releases to the cluster.
template <bool kBroken>
void WaitAtCtaScope(const Params&) {
  InitBarrier();
  SyncCluster();
  if (IsFirst() && ptx::cluster_ctarank() == 1) {
    ptx::st_async_v4_f32(ptx::dynamic_smem(), Bar(), 0, 1, 2, 3, 4);
  } else if (IsFirst()) {
    ptx::mbarrier_arrive_expect_tx(Bar(), 16);
    if (kBroken) ptx::mbarrier_wait_parity(Bar(), 0);
    if (!kBroken) ptx::mbarrier_wait_parity_cluster(Bar(), 0);
  }
  SyncCluster();
}

template <bool kBroken>
void ExitBeforeClusterWait(const Params&) {
  ptx::barrier_cluster_arrive();
  if (!kBroken) ptx::barrier_cluster_wait();
}

// ---- Warps and barriers of a CTA ----------------------------------------------------------------

template <bool kBroken>
void BarrierSixteen(const Params&) {
  ptx::barrier_sync(kBroken ? 16 : 15, kThreads);
}

template <bool kBroken>
void BarrierOfHalfWarp(const Params&) {
  ptx::barrier_sync(1, kBroken ? kThreads - 16 : kThreads);
}

template <bool kBroken>
void BarrierCountsDiffer(const Params&) {
  ptx::barrier_sync(1, kBroken && ptx::warp_idx() == 1 ? 64 : kThreads);
}

template <bool kBroken>
void LanesExitEarly(const Params&) {
  if (kBroken && ptx::lane_idx() < 16) return;
  ptx::bar_warp_sync();
}

template <bool kBroken>
void ShuffleFromLane32(const Params&) {
  ptx::shfl_sync_idx(1, kBroken ? 32 : 31);
}

template <bool kBroken>
void ShuffleOperandsDiffer(const Params&) {
  ptx::shfl_sync_idx(1, kBroken ? ptx::lane_idx() : 0);
}

// Which lane is elected is not said: only the elected one may wait for what it has issued.
template <bool kBroken>
void ElectedLaneIsZero(const Params& params) {
  if (ptx::warp_idx() != 0) return;
  const bool is_issuer = ptx::elect_sync();
  if (is_issuer) {
    ptx::cp_async_bulk_tensor_2d_s2g(&params.d, ptx::dynamic_smem(), 0, 0);
    ptx::cp_async_bulk_commit_group();
  }
  if (kBroken ? ptx::lane_idx() == 0 : is_issuer) ptx::cp_async_bulk_wait_group_read<0>();
}

template <bool kBroken>
void RegistersUnsynchronized(const Params&) {
  ptx::setmaxnreg_dec<104>();
  if (!kBroken) ptx::barrier_sync(1, kThreads);
  ptx::setmaxnreg_dec<96>();
}

template <bool kBroken>
void RegistersOfThreeWarps(const Params&) {
  if (!kBroken || ptx::warp_idx() != 2) ptx::setmaxnreg_dec<96>();
}

// ---- Addresses ----------------------------------------------------------------------------------

template <bool kBroken>
void MisalignedStmatrix(const Params&) {
  const uint32_t row = ptx::dynamic_smem() + 16 * ptx::thread_idx();
  ptx::stmatrix_x4(row + (kBroken ? 8 : 0), 1, 2, 3, 4);
}

template <bool kBroken>
void MisalignedVector(const Params&) {
  const uint32_t quad = ptx::dynamic_smem() + 16 * ptx::thread_idx();
  float values[4];
  ptx::st_shared_v4_u32(quad, 1, 2, 3, 4);
  ptx::ld_shared_v4_f32(quad + (kBroken ? 8 : 0), values);
}

template <bool kBroken>
void MisalignedGlobal(const Params& params) {
  const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(params.factor);
  ptx::ld_global_nc_u16(bytes + (kBroken ? 1 : 2));
}

template <bool kBroken>
void ReadOnlyThenWritten(const Params& params) {
  if (!IsFirst()) return;
  float* const factor = const_cast<float*>(params.factor);
  const float value = kBroken ? ptx::ld_global_nc_f32(factor) : ptx::ld_global_f32(factor);
  ptx::st_global_f32(factor, value);
}

template <bool kBroken>
void WrittenThenReadOnly(const Params& params) {
  if (!IsFirst()) return;
  float* const factor = const_cast<float*>(params.factor);
  ptx::st_global_f32(factor, ptx::ld_global_f32(factor));
  if (kBroken) ptx::ld_global_nc_f32(factor);
}

// ---- TMA ----------------------------------------------------------------------------------------

template <bool kBroken>
void MapIsCopied(const Params& params) {
  const TensorMap copy = params.a;
  ptx::prefetch_tensormap(kBroken ? &copy : &params.a);
}

template <bool kBroken>
void MisalignedMap(const Params& params) {
  const auto address = reinterpret_cast<uintptr_t>(&params.a) + (kBroken ? 32 : 0);
  ptx::prefetch_tensormap(reinterpret_cast<const TensorMap*>(address));
}

// A box of 64 scales to `offset`.
inline void LoadScales(const TensorMap& map, uint32_t offset, bool waits = true) {
  ptx::mbarrier_arrive_expect_tx(Bar(), 256);
  ptx::cp_async_bulk_tensor_2d_g2s(&map, Bar(), ptx::dynamic_smem() + offset, 0, 0);
  if (waits) ptx::mbarrier_wait_parity(Bar(), 0);
}

template <bool kBroken>
void MisalignedLoad(const Params& params) {
  InitBarrier();
  if (IsFirst()) LoadScales(params.scales, kBroken ? 64 : 128);
}

template <bool kBroken>
void LoadIsNotAwaited(const Params& params) {
  InitBarrier();
  if (IsFirst()) LoadScales(params.scales, 0, !kBroken);
}

template <bool kBroken>
void LoadOverMbarrier(const Params& params) {
  InitBarrier();
  if (IsFirst()) LoadScales(params.scales, kBroken ? kBarrier : 0);
}

// `b` has three dimensions here.
template <bool kBroken>
void MapOfRankThree(const Params& params) {
  InitBarrier();
  if (IsFirst()) LoadScales(kBroken ? params.b : params.scales, 0);
}

template <bool kBroken>
void MisalignedStore(const Params& params) {
  if (!IsFirst()) return;
  const uint32_t src = ptx::dynamic_smem() + (kBroken ? 512 : 1024);
  ptx::cp_async_bulk_tensor_2d_s2g(&params.d, src, 0, 0);
  ptx::cp_async_bulk_commit_group();
  ptx::cp_async_bulk_wait_group_read<0>();
}

// ---- wgmma --------------------------------------------------------------------------------------

template <uint32_t kN>
void Multiply(float (&d)[kN / 2], uint64_t changed_bits = 0) {
  const uint64_t tile = make_k_major_descriptor(descriptor_start(ptx::dynamic_smem()));
  ptx::wgmma_m64k32<Fp8Type::kE4M3, Fp8Type::kE4M3, kN>(d, tile ^ changed_bits, tile, false);
}

inline void FinishWgmma() {
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
}

template <bool kBroken>
void DescriptorCarry(const Params&) {
  float d[8];
  ptx::wgmma_fence();
  Multiply<16>(d, kBroken ? 1 << 14 : 0);
  FinishWgmma();
}

template <bool kBroken>
void DescriptorBaseOffset(const Params&) {
  float d[8];
  ptx::wgmma_fence();
  Multiply<16>(d, kBroken ? uint64_t{1} << 49 : 0);
  FinishWgmma();
}

template <bool kBroken>
void ShapeChangesInFlight(const Params&) {
  float d[16];
  ptx::wgmma_fence();
  Multiply<16>(reinterpret_cast<float (&)[8]>(d));
  if (!kBroken) {
    FinishWgmma();
    ptx::wgmma_fence();
  }
  Multiply<32>(d);
  FinishWgmma();
}

template <bool kBroken>
void GroupsDiffer(const Params&) {
  float d[8];
  ptx::wgmma_fence();
  Multiply<16>(d);
  if (kBroken && ptx::warp_idx() == 1) Multiply<16>(d);
  FinishWgmma();
}

template <bool kBroken>
void ExitWithWgmma(const Params&) {
  float d[8];
  ptx::wgmma_fence();
  Multiply<16>(d);
  ptx::wgmma_commit_group();
  if (!kBroken) ptx::wgmma_wait_group<0>();
}

}  // namespace sim_test::rules
