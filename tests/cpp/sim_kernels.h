// SPDX-License-Identifier: Apache-2.0
// Small kernels for the simulator's tests, each correct and with faults planted one at a time.
#pragma once
#include <mma/smem_descriptor.cuh>
#include <mma/wgmma_fp8.cuh>
#include <ptx/cluster.cuh>
#include <ptx/global.cuh>
#include <ptx/mbarrier.cuh>
#include <ptx/tma.cuh>
#include <ptx/warp.cuh>
#include <ptx/wgmma.cuh>

namespace sim_test {

using namespace fp8gemm;

enum class Fault {
  kNone,
  // Pipeline
  kConsumerSkipsFull,
  kOneLaneWaitsFull,
  kLaneLapped,
  kReleaseBeforeWait,
  kProducerParity,
  kProducerSkipsEmpty,
  kExpectTooFew,
  kEmptyCountTooHigh,
  kArriveTwice,
  kNoInitFence,
  kNoInitBarrier,
  kUninitializedBarrier,
  kReinitializedBarrier,
  kScaleReadAfterRelease,
  // wgmma
  kNoWgmmaFence,
  kNoWgmmaWait,
  kReadBeforeWait,
  kTouchInFlight,
  kDescriptorRow,
  kWarpsDiffer,
  // Epilogue
  kNoProxyFence,
  kProxyFenceInOneLane,
  kNoStoreBarrier,
  kNoStoreWait,
  kNoBarrierAfterStoreWait,
  kNoFinalStoreWait,
  kNoCommit,
  // Convergence
  kDivergentWgmma,
  kDivergentStmatrix,
  kDivergentBarrier,
  kElectInDivergentCode,
  kLaneExchange,
  kSharedBarrier,
  // Registers
  kTooManyRegisters,
  kRegistersDiffer,
  kIncreaseBelow,
  // Addresses
  kMisalignedTile,
  kMisalignedLoad,
  kBoxFromOddScale,
  kBoxToOddColumn,
  kBeyondSmem,
  kStoreOverBarrier,
  kGlobalOutOfRange,
  kNoGridWait,
  kMapNotEncoded,
  // Cluster
  kNoFinalClusterSync,
  kReleaseOnlyOwn,
  kMulticastOffset,
  kArriveTwiceAtCluster,
  kWaitWithoutArrive,
  kMulticastMask,
};

// d (64 * tiles, 64) bf16 = factor * sum over K blocks of scales[kb, row] * (a[row] . b[column]).
struct Params {
  TensorMap a;       // (64 * tiles, 128 * k_blocks) e4m3, box (64, 128)
  TensorMap b;       // (64, 128 * k_blocks) e4m3, box (64 / cluster, 128)
  TensorMap scales;  // (k_blocks, 64 * tiles) f32, box (1, 64)
  TensorMap d;       // bf16, box (64, 64)
  const float* factor;
  uint32_t tiles;
  uint32_t k_blocks;
};

// One consumer and one producer warpgroup; a ring of two stages.
template <Fault kFault, uint32_t kCluster>
class Pipeline {
 public:
  static constexpr uint32_t kThreads = 256;
  static constexpr uint32_t kStages = 2;
  static constexpr uint32_t kTileBytes = 64 * 128;
  static constexpr uint32_t kD = 0;
  static constexpr uint32_t kA = kD + kTileBytes;
  static constexpr uint32_t kB = kA + kStages * kTileBytes;
  static constexpr uint32_t kScales = kB + kStages * kTileBytes;
  static constexpr uint32_t kFull = kScales + kStages * 256;
  static constexpr uint32_t kEmpty = kFull + kStages * 8;
  static constexpr uint32_t kSmemBytes = kEmpty + kStages * 8;

  explicit Pipeline(const Params& params) : params_(params), smem_(ptx::dynamic_smem()) {}

  void Run() {
    const uint32_t warp = ptx::warp_idx();
    if (warp == 4) {
      if (ptx::elect_sync()) InitBarriers();
      ptx::bar_warp_sync();
    }
    if (!Has(Fault::kNoInitBarrier)) SyncAll();
    if (!Has(Fault::kNoGridWait)) ptx::griddepcontrol_wait();
    if (warp >= 4) {
      ptx::setmaxnreg_dec<40>();
      if (warp == 4) {
        if (ptx::elect_sync()) Produce();
        ptx::bar_warp_sync();
      }
      if (Has(Fault::kSharedBarrier)) ptx::barrier_sync(1, 128);
    } else {
      RaiseRegisters(warp);
      Consume(warp);
    }
    if (kCluster > 1 && !Has(Fault::kNoFinalClusterSync)) SyncAll();
  }

 private:
  static constexpr bool Has(Fault fault) { return kFault == fault; }
  uint32_t A(uint32_t stage) const { return smem_ + kA + stage * kTileBytes; }
  uint32_t B(uint32_t stage) const { return smem_ + kB + stage * kTileBytes; }
  uint32_t Scales(uint32_t stage) const { return smem_ + kScales + stage * 256; }
  uint32_t Full(uint32_t stage) const { return smem_ + kFull + stage * 8; }
  uint32_t Empty(uint32_t stage) const { return smem_ + kEmpty + stage * 8; }

  void SyncAll() const {
    if constexpr (kCluster == 1) {
      ptx::barrier_sync(0, kThreads);
      return;
    }
    if (!Has(Fault::kWaitWithoutArrive)) ptx::barrier_cluster_arrive();
    if (Has(Fault::kArriveTwiceAtCluster)) ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
  }

  void InitBarriers() const {
    for (uint32_t stage = 0; stage < kStages; ++stage) {
      if (!Has(Fault::kUninitializedBarrier) || stage == 0) ptx::mbarrier_init(Full(stage), 1);
      ptx::mbarrier_init(Empty(stage), 4 * kCluster + (Has(Fault::kEmptyCountTooHigh) ? 1 : 0));
    }
    if (Has(Fault::kReinitializedBarrier)) ptx::mbarrier_init(Full(0), 1);
    if (!Has(Fault::kNoInitFence)) ptx::fence_mbarrier_init_release_cluster();
  }

  // A launch gives 128 each, 256 to a pair of warps: 40 + 216 fits, 40 + 240 does not.
  void RaiseRegisters(uint32_t warp) const {
    if (Has(Fault::kTooManyRegisters)) {
      ptx::setmaxnreg_inc<240>();
    } else if (Has(Fault::kRegistersDiffer) && warp == 0) {
      ptx::setmaxnreg_inc<208>();
    } else if (Has(Fault::kIncreaseBelow)) {
      ptx::setmaxnreg_inc<64>();
    } else {
      ptx::setmaxnreg_inc<216>();
    }
  }

  void LoadB(uint32_t stage, uint32_t x) const {
    if constexpr (kCluster == 1) {
      ptx::cp_async_bulk_tensor_2d_g2s(&params_.b, Full(stage), B(stage), x, 0);
    } else {
      constexpr uint32_t kRows = 64 / kCluster;
      const uint32_t part = ptx::cluster_ctarank() * kRows;
      const uint32_t offset = Has(Fault::kMulticastOffset) ? 0 : part * 128;
      const uint32_t mask = Has(Fault::kMulticastMask) ? 4 : (1u << kCluster) - 1;
      ptx::cp_async_bulk_tensor_2d_g2s_multicast(&params_.b, Full(stage), B(stage) + offset, x,
                                                 part, mask);
    }
  }

  void Produce() const {
    uint32_t step = 0;
    for (uint32_t tile = ptx::block_idx(); tile < params_.tiles; tile += ptx::grid_dim()) {
      for (uint32_t kb = 0; kb < params_.k_blocks; ++kb, ++step) {
        const uint32_t stage = step % kStages;
        const uint32_t parity = step / kStages % 2;
        const bool waits = !Has(Fault::kProducerSkipsEmpty) || step < kStages;
        const uint32_t empty_parity = Has(Fault::kProducerParity) ? parity : parity ^ 1;
        if (waits) ptx::mbarrier_wait_parity(Empty(stage), empty_parity);
        const uint32_t bytes = 2 * kTileBytes + 256;
        ptx::mbarrier_arrive_expect_tx(Full(stage), bytes - (Has(Fault::kExpectTooFew) ? 16 : 0));
        const uint32_t shift = Has(Fault::kMisalignedTile) ? 128 : 0;
        const TensorMap unencoded = {};
        const TensorMap* const map = Has(Fault::kMapNotEncoded) ? &unencoded : &params_.a;
        ptx::cp_async_bulk_tensor_2d_g2s(map, Full(stage), A(stage) + shift, kb * 128, tile * 64);
        LoadB(stage, kb * 128);
        const uint32_t first_scale = tile * 64 + (Has(Fault::kBoxFromOddScale) ? 2 : 0);
        ptx::cp_async_bulk_tensor_2d_g2s(&params_.scales, Full(stage), Scales(stage), first_scale,
                                         kb);
      }
    }
  }

  void WaitFull(uint32_t stage, uint32_t parity) const {
    if (Has(Fault::kConsumerSkipsFull)) return;
    if (Has(Fault::kOneLaneWaitsFull) && ptx::lane_idx() != 0) return;
    ptx::mbarrier_wait_parity(Full(stage), parity);
  }

  void Release(uint32_t stage) const {
    const uint32_t lane = ptx::lane_idx();
    if (kCluster == 1 || Has(Fault::kReleaseOnlyOwn)) {
      if (lane == 0) ptx::mbarrier_arrive(Empty(stage));
      if (lane == 0 && Has(Fault::kArriveTwice)) ptx::mbarrier_arrive(Empty(stage));
    } else if (lane < kCluster) {
      ptx::mbarrier_arrive_cluster(Empty(stage), lane);
    }
  }

  void Multiply(uint32_t warp, uint32_t stage, float (&partial)[32]) const {
    const uint64_t row_shift = Has(Fault::kDescriptorRow) ? descriptor_offset(128) : 0;
    const uint32_t a_stage = Has(Fault::kWarpsDiffer) && warp == 1 ? stage ^ 1 : stage;
    const uint64_t a = make_k_major_descriptor(descriptor_start(A(a_stage))) + row_shift;
    const uint64_t b = make_k_major_descriptor(descriptor_start(B(stage)));
    if (!Has(Fault::kNoWgmmaFence)) ptx::wgmma_fence();
    for (uint32_t k = 0; k < 4; ++k) {
      if (Has(Fault::kDivergentWgmma) && ptx::lane_idx() == 3 && k == 3) continue;
      ptx::wgmma_m64k32<Fp8Type::kE4M3, Fp8Type::kE4M3, 64>(partial, a + 2 * k, b + 2 * k, k != 0);
      if (Has(Fault::kTouchInFlight)) partial[5] = 0.0f;
    }
    ptx::wgmma_commit_group();
    if (Has(Fault::kReleaseBeforeWait)) Release(stage);
    if (!Has(Fault::kNoWgmmaWait) && !Has(Fault::kReadBeforeWait)) ptx::wgmma_wait_group<0>();
  }

  void Consume(uint32_t warp) const {
    const uint32_t row = warp * 16 + ptx::lane_idx() / 4;
    const float factor =
        ptx::ld_global_nc_f32(params_.factor + (Has(Fault::kGlobalOutOfRange) ? 1 << 16 : 0));
    uint32_t step = 0;
    for (uint32_t tile = ptx::block_idx(); tile < params_.tiles; tile += ptx::grid_dim()) {
      float accum[32] = {};
      for (uint32_t kb = 0; kb < params_.k_blocks; ++kb, ++step) {
        const uint32_t stage = step % kStages;
        float partial[32];
        float scale[2] = {};
        WaitFull(stage, step / kStages % 2);
        if (!Has(Fault::kScaleReadAfterRelease)) ReadScales(stage, row, scale);
        Multiply(warp, stage, partial);
        if (!Has(Fault::kReleaseBeforeWait)) Release(stage);
        const bool waits_again = Has(Fault::kLaneLapped) && ptx::lane_idx() == 7;
        if (waits_again) ptx::mbarrier_wait_parity(Full(stage), step / kStages % 2);
        if (Has(Fault::kScaleReadAfterRelease)) ReadScales(stage, row, scale);
        for (uint32_t i = 0; i < 32; ++i) accum[i] += scale[i / 2 % 2] * factor * partial[i];
        if (Has(Fault::kReadBeforeWait)) ptx::wgmma_wait_group<0>();
      }
      Store(warp, tile, accum);
    }
    const bool waits = !Has(Fault::kNoFinalStoreWait) && ptx::thread_idx() == 0;
    if (waits) ptx::cp_async_bulk_wait_group_read<0>();
  }

  void ReadScales(uint32_t stage, uint32_t row, float (&scale)[2]) const {
    const uint32_t shift = Has(Fault::kMisalignedLoad) ? 2 : Has(Fault::kBeyondSmem) ? 4096 : 0;
    scale[0] = ptx::ld_shared_f32(Scales(stage) + row * 4 + shift);
    scale[1] = ptx::ld_shared_f32(Scales(stage) + (row + 8) * 4 + shift);
  }

  void Store(uint32_t warp, uint32_t tile, const float (&accum)[32]) const {
    const bool is_issuer = ptx::thread_idx() == 0;
    const uint32_t lane = ptx::lane_idx();
    if (is_issuer && !Has(Fault::kNoStoreWait)) ptx::cp_async_bulk_wait_group_read<0>();
    if (Has(Fault::kDivergentBarrier) && lane == 31) ptx::bar_warp_sync();
    if (!Has(Fault::kNoBarrierAfterStoreWait)) ptx::barrier_sync(1, 128);
    if (Has(Fault::kElectInDivergentCode) && lane < 16) ptx::elect_sync();
    if (Has(Fault::kLaneExchange)) {
      ptx::st_shared_f32(smem_ + kD + ptx::thread_idx() * 4, 1.0f);
      ptx::ld_shared_f32(smem_ + kD + (ptx::thread_idx() ^ 1) * 4);
    }
    if (Has(Fault::kStoreOverBarrier)) ptx::st_shared_f32(Full(0), 1.0f);
    for (uint32_t i = 0; i < 32; i += 8) {
      if (Has(Fault::kDivergentStmatrix) && lane == 3) continue;
      const uint32_t row = warp * 16 + lane % 16;
      const uint32_t chunk = (i / 4 + lane / 16) ^ (row % 8);
      ptx::stmatrix_x4(smem_ + kD + row * 128 + chunk * 16,
                       ptx::cvt_rn_bf16x2_f32(accum[i + 1], accum[i]),
                       ptx::cvt_rn_bf16x2_f32(accum[i + 3], accum[i + 2]),
                       ptx::cvt_rn_bf16x2_f32(accum[i + 5], accum[i + 4]),
                       ptx::cvt_rn_bf16x2_f32(accum[i + 7], accum[i + 6]));
    }
    const bool fences = Has(Fault::kProxyFenceInOneLane) ? is_issuer : !Has(Fault::kNoProxyFence);
    if (fences) ptx::fence_proxy_async_shared_cta();
    if (!Has(Fault::kNoStoreBarrier)) ptx::barrier_sync(1, 128);
    if (!is_issuer) return;
    const int32_t column = Has(Fault::kBoxToOddColumn) ? -4 : 0;
    ptx::cp_async_bulk_tensor_2d_s2g(&params_.d, smem_ + kD, column, tile * 64);
    if (!Has(Fault::kNoCommit)) ptx::cp_async_bulk_commit_group();
  }

  const Params& params_;
  const uint32_t smem_;
};

template <Fault kFault, uint32_t kCluster>
void PipelineEntry(const void* params) {
  Pipeline<kFault, kCluster>(*static_cast<const Params*>(params)).Run();
}

}  // namespace sim_test
