// SPDX-License-Identifier: Apache-2.0
// A small warp-specialized FP8 loop in the shape of the real kernels, compiled with one planted
// fault at a time, to show that each gate of tests/_sass can fail. Never launched.
#include <mma/smem_descriptor.cuh>
#include <mma/wgmma_fp8.cuh>
#include <ptx/global.cuh>
#include <ptx/mbarrier.cuh>
#include <ptx/tma.cuh>
#include <ptx/warp.cuh>
#include <ptx/wgmma.cuh>
#include <shared/gemm_params.h>

namespace specimen {

using namespace fp8gemm;

constexpr uint32_t kBlockM = 128, kBlockN = BLOCK_N, kStages = 4, kWaves = WAVES;
constexpr uint32_t kThreads = 384, kConsumerWarps = 8;
constexpr uint32_t kStageBytes = (kBlockM + kBlockN) * fp8gemm::kBlockK;
constexpr uint32_t kBarriers = kStages * kStageBytes;

FP8GEMM_DEVICE uint32_t full(uint32_t stage) { return ptx::dynamic_smem() + kBarriers + 8 * stage; }
FP8GEMM_DEVICE uint32_t empty(uint32_t stage) { return full(stage + kStages); }

__device__ __noinline__ float outlined(float x) {
  asm volatile("" : "+f"(x));
  return x * x;
}

FP8GEMM_DEVICE void load(const GemmParams& params, const float* extra) {
#ifdef HEAVY_PRODUCER
  float held[64];
  FP8GEMM_UNROLL
  for (int i = 0; i < 64; ++i) held[i] = ptx::ld_global_nc_f32(extra + i);
#endif
  for (uint32_t block = 0; block < params.k_blocks; ++block) {
    const uint32_t stage = block % kStages;
    ptx::mbarrier_wait_parity(empty(stage), ((block / kStages) & 1) ^ 1);
    ptx::mbarrier_arrive_expect_tx(full(stage), kStageBytes);
    const uint32_t a = ptx::dynamic_smem() + stage * kStageBytes;
    ptx::cp_async_bulk_tensor_2d_g2s(&params.a, full(stage), a, block * 128, 0);
    ptx::cp_async_bulk_tensor_2d_g2s(&params.b, full(stage), a + kBlockM * 128, block * 128, 0);
#ifdef HEAVY_PRODUCER
    FP8GEMM_UNROLL
    for (int i = 0; i < 64; ++i) held[i] = held[i] * held[(i + 7) % 64] + 1.f;
#endif
  }
#ifdef HEAVY_PRODUCER
  FP8GEMM_UNROLL
  for (int i = 0; i < 64; ++i) ptx::st_shared_f32(ptx::dynamic_smem() + 4 * i, held[i]);
#endif
}

FP8GEMM_DEVICE void start_mma(float (&partial)[kBlockN / 2], uint64_t a, uint64_t b, uint32_t k) {
  ptx::wgmma_m64k32<Fp8Type::kE4M3, Fp8Type::kE4M3, kBlockN>(partial, a + 2 * k, b + 2 * k, k != 0);
}

FP8GEMM_DEVICE void mma(const GemmParams& params, float* out) {
  const uint32_t group = ptx::warp_idx() / 4;
  float accum[kWaves][kBlockN / 2] = {};
  float partial[kBlockN / 2];
  for (uint32_t block = 0; block < params.k_blocks; ++block) {
    const uint32_t stage = block % kStages;
    ptx::mbarrier_wait_parity(full(stage), (block / kStages) & 1);
    const uint32_t a_smem = ptx::dynamic_smem() + stage * kStageBytes + group * 64 * 128;
    const uint32_t b_smem = a_smem + kBlockM * 128;
    const float scale = params.sfb_blocks[block];
    FP8GEMM_UNROLL
    for (uint32_t wave = 0; wave < kWaves; ++wave) {
#ifdef DIVERGENT_DESCRIPTOR
      const uint32_t wave_smem = a_smem + wave * 8192 + (threadIdx.x & 1) * 1024;
#else
      const uint32_t wave_smem = a_smem + wave * 8192;
#endif
      const uint64_t a = make_k_major_descriptor(descriptor_start(wave_smem));
      const uint64_t b = make_k_major_descriptor(descriptor_start(b_smem));
      ptx::fence_registers(partial);
      ptx::wgmma_fence();
#if defined(ROLLED_K)
#pragma unroll 1
      for (uint32_t k = 0; k < 4; ++k) start_mma(partial, a, b, k);
#elif defined(CONDITIONAL_MMA)
      FP8GEMM_UNROLL
      for (uint32_t k = 0; k < 4; ++k) {
        if (params.m > k) start_mma(partial, a, b, k);
      }
#elif defined(TOUCH_BETWEEN)
      FP8GEMM_UNROLL
      for (uint32_t k = 0; k < 4; ++k) {
        start_mma(partial, a, b, k);
        partial[k] += scale;
      }
#else
      FP8GEMM_UNROLL
      for (uint32_t k = 0; k < 4; ++k) start_mma(partial, a, b, k);
#endif
      ptx::wgmma_commit_group();
#ifndef READ_BEFORE_WAIT
      ptx::fence_registers(partial);
      ptx::wgmma_wait_group<0>();
      ptx::fence_registers(partial);
#endif
      FP8GEMM_UNROLL
      for (uint32_t i = 0; i < kBlockN / 2; ++i) accum[wave][i] += scale * partial[i];
#ifdef READ_BEFORE_WAIT
      ptx::wgmma_wait_group<0>();
#endif
#ifdef EXTRA_FFMA
      FP8GEMM_UNROLL
      for (uint32_t i = 0; i < kBlockN / 2; ++i) accum[wave][i] += scale * accum[wave][0];
#endif
#ifdef OUTLINED_CALL
      accum[wave][0] = outlined(accum[wave][0]);
#endif
    }
#ifdef CLUSTER_RELEASE
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(empty(stage))
                 : "memory");
#else
    ptx::mbarrier_arrive(empty(stage));
#endif
  }
  FP8GEMM_UNROLL
  for (uint32_t wave = 0; wave < kWaves; ++wave) {
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < kBlockN / 2; ++i) {
      out[(wave * kBlockN + i) * kThreads + threadIdx.x] = accum[wave][i];
    }
  }
}

#ifdef NO_LAUNCH_BOUNDS
#define BOUNDS
#else
#define BOUNDS __launch_bounds__(kThreads, 1)
#endif

extern "C" __global__ void BOUNDS warp_specialized(const __grid_constant__ GemmParams params,
                                                   float* out) {
  if (ptx::warp_idx() == 0 && ptx::elect_sync()) {
    for (uint32_t stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(full(stage), 1);
      ptx::mbarrier_init(empty(stage), 32 * kConsumerWarps);
    }
    ptx::fence_mbarrier_init_release_cluster();
  }
  ptx::barrier_sync(0, kThreads);
  if (ptx::warp_idx() >= kConsumerWarps) {
#ifndef NO_SETMAXNREG
    ptx::setmaxnreg_dec<40>();
#endif
    if (ptx::warp_idx() == kConsumerWarps && ptx::elect_sync()) load(params, out);
  } else {
#ifndef NO_SETMAXNREG
    ptx::setmaxnreg_inc<232>();
#endif
    mma(params, out);
  }
}

}  // namespace specimen
