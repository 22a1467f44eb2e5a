// SPDX-License-Identifier: Apache-2.0
// Conformance micro-kernels: one instruction, or one small protocol, each, written against the same
// wrappers as the GEMM kernels and compiled for the GPU and for the simulator.
//
// A kernel reads `in` and its tensor maps and writes raw bits to `out`. What it must give is
// computed by conformance_models.py; what a GPU gives is frozen in golden/. Listed in catalogue.py.
#pragma once
#include <fp8_gemm/epilogue.cuh>
#include <mma/smem_descriptor.cuh>
#include <mma/wgmma_fp8.cuh>
#include <ptx/cluster.cuh>
#include <ptx/fp8.cuh>
#include <ptx/global.cuh>
#include <ptx/mbarrier.cuh>
#include <ptx/tma.cuh>
#include <ptx/warp.cuh>
#include <ptx/wgmma.cuh>

namespace fp8gemm::conformance {

inline constexpr uint32_t kNumArgs = 12;
inline constexpr uint32_t kThreads = 128;

// The single parameter of every micro-kernel; drivers.py has the same layout.
struct Params {
  TensorMap maps[2];
  const uint32_t* in;
  uint32_t* out;
  uint32_t args[kNumArgs];
};

// Barriers lie behind all data: data uses offsets below this one.
inline constexpr uint32_t kBarrierOffset = 64 * 1024;
// What shared memory holds before an instruction under test writes to it.
inline constexpr uint32_t kBackground = 0xa5a5a5a5u;

FP8GEMM_DEVICE void store_word(uint32_t addr, uint32_t bits) {
  ptx::st_shared_f32(addr, ptx::uint_as_float(bits));
}

// All `kThreads` threads; the caller synchronizes.
FP8GEMM_DEVICE void fill(uint32_t smem, uint32_t num_words) {
  for (uint32_t i = ptx::thread_idx(); i < num_words; i += kThreads) {
    store_word(smem + 4 * i, kBackground);
  }
}

FP8GEMM_DEVICE void copy_in(uint32_t smem, const uint32_t* words, uint32_t num_words) {
  for (uint32_t i = ptx::thread_idx(); i < num_words; i += kThreads) {
    store_word(smem + 4 * i, words[i]);
  }
}

FP8GEMM_DEVICE void dump(uint32_t* words, uint32_t smem, uint32_t num_words) {
  for (uint32_t i = ptx::thread_idx(); i < num_words; i += kThreads) {
    words[i] = ptx::ld_shared_u32(smem + 4 * i);
  }
}

// Makes the data and a barrier of `count` arrivals ready for asynchronous copies of this CTA.
FP8GEMM_DEVICE void publish(uint32_t bar, uint32_t count) {
  if (ptx::thread_idx() == 0) {
    ptx::mbarrier_init(bar, count);
    ptx::fence_mbarrier_init_release_cluster();
  }
  ptx::fence_proxy_async_shared_cta();
  ptx::barrier_sync(kCtaBarrier, kThreads);
}

// ---- TMA ---------------------------------------------------------------------------------------

// args: bytes of the box, x, y, words to dump. The box lands at offset 0 of a background that is
// dumped with it.
FP8GEMM_DEVICE void tma_load(const Params& params) {
  const uint32_t smem = ptx::dynamic_smem();
  const uint32_t bar = smem + kBarrierOffset;
  fill(smem, params.args[3]);
  publish(bar, 1);
  if (ptx::thread_idx() == 0) {
    ptx::prefetch_tensormap(&params.maps[0]);
    ptx::mbarrier_arrive_expect_tx(bar, params.args[0]);
    ptx::cp_async_bulk_tensor_2d_g2s(&params.maps[0], bar, smem,
                                     static_cast<int32_t>(params.args[1]),
                                     static_cast<int32_t>(params.args[2]));
  }
  ptx::mbarrier_wait_parity(bar, 0);
  dump(params.out, smem, params.args[3]);
}

// args: words of the box, then x and y of two stores. The second reuses the shared memory of the
// first, with other data, as soon as the first has read it.
FP8GEMM_DEVICE void tma_store(const Params& params) {
  const uint32_t smem = ptx::dynamic_smem();
  const uint32_t num_words = params.args[0];
  for (uint32_t i = 0; i < 2; ++i) {
    copy_in(smem, params.in + i * num_words, num_words);
    ptx::fence_proxy_async_shared_cta();
    ptx::barrier_sync(kCtaBarrier, kThreads);
    if (ptx::thread_idx() == 0) {
      ptx::cp_async_bulk_tensor_2d_s2g(&params.maps[0], smem,
                                       static_cast<int32_t>(params.args[1 + 2 * i]),
                                       static_cast<int32_t>(params.args[2 + 2 * i]));
      ptx::cp_async_bulk_commit_group();
      ptx::cp_async_bulk_wait_group_read<0>();
    }
    ptx::barrier_sync(kCtaBarrier, kThreads);
  }
}

// Cluster of two. args: bytes of a box; words to dump; then for each rank x, y, CTA mask (0: no
// load) and the bytes that arrive at this rank. Rank r's box goes to offset r * box bytes.
FP8GEMM_DEVICE void tma_multicast(const Params& params) {
  const uint32_t smem = ptx::dynamic_smem();
  const uint32_t bar = smem + kBarrierOffset;
  const uint32_t rank = ptx::cluster_ctarank();
  const uint32_t* mine = params.args + 2 + 4 * rank;
  fill(smem, params.args[1]);
  publish(bar, 1);
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
  if (ptx::thread_idx() == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, mine[3]);
    if (mine[2] != 0) {
      ptx::cp_async_bulk_tensor_2d_g2s_multicast(
          &params.maps[0], bar, smem + rank * params.args[0], static_cast<int32_t>(mine[0]),
          static_cast<int32_t>(mine[1]), static_cast<uint16_t>(mine[2]));
    }
  }
  ptx::mbarrier_wait_parity(bar, 0);
  dump(params.out + rank * params.args[1], smem, params.args[1]);
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
}

// ---- wgmma -------------------------------------------------------------------------------------

inline constexpr uint32_t kOperandBOffset = 16 * 1024;

// in: 128 rows of A, kN rows of B, both as shared memory images of 128-byte rows; then the initial
// accumulators, thread after thread. args: first k step, whether the accumulators count, first row
// of A. out: the accumulators.
template <uint32_t kN, Fp8Type kA, Fp8Type kB, uint32_t kSteps>
FP8GEMM_DEVICE void wgmma(const Params& params) {
  constexpr uint32_t kFragment = kN / 2;
  constexpr uint32_t kWordsA = kOperandBOffset / 4;
  constexpr uint32_t kWordsB = kN * kRowBytes / 4;
  const uint32_t smem = ptx::dynamic_smem();
  copy_in(smem, params.in, kWordsA);
  copy_in(smem + kOperandBOffset, params.in + kWordsA, kWordsB);
  const uint32_t* initial = params.in + kWordsA + kWordsB + ptx::thread_idx() * kFragment;
  float d[kFragment];
  FP8GEMM_UNROLL
  for (uint32_t i = 0; i < kFragment; ++i) d[i] = ptx::uint_as_float(initial[i]);
  ptx::fence_proxy_async_shared_cta();
  ptx::barrier_sync(kCtaBarrier, kThreads);
  const uint32_t first = descriptor_offset(params.args[0] * kMmaK);
  const uint32_t a_start = descriptor_start(smem + params.args[2] * kRowBytes);
  const uint64_t a_desc = make_k_major_descriptor(a_start + first);
  const uint64_t b_desc = make_k_major_descriptor(descriptor_start(smem + kOperandBOffset) + first);
  const bool accumulate = params.args[1] != 0;
  ptx::fence_registers(d);
  ptx::wgmma_fence();
  FP8GEMM_UNROLL
  for (uint32_t k = 0; k < kSteps; ++k) {
    const uint64_t step = descriptor_offset(k * kMmaK);
    ptx::wgmma_m64k32<kA, kB, kN>(d, a_desc + step, b_desc + step, k != 0 || accumulate);
  }
  ptx::wgmma_commit_group();
  ptx::fence_registers(d);
  ptx::wgmma_wait_group<0>();
  ptx::fence_registers(d);

  uint32_t* out = params.out + ptx::thread_idx() * kFragment;
  FP8GEMM_UNROLL
  for (uint32_t i = 0; i < kFragment; ++i) out[i] = __builtin_bit_cast(uint32_t, d[i]);
}

// ---- Epilogue ----------------------------------------------------------------------------------

// in: address offset and four registers of each thread. out: 8 KiB of shared memory.
FP8GEMM_DEVICE void stmatrix_x4(const Params& params) {
  constexpr uint32_t kWords = 2048;
  const uint32_t smem = ptx::dynamic_smem();
  fill(smem, kWords);
  ptx::barrier_sync(kCtaBarrier, kThreads);
  const uint32_t* in = params.in + 5 * ptx::thread_idx();
  ptx::stmatrix_x4(smem + in[0], in[1], in[2], in[3], in[4]);
  ptx::barrier_sync(kCtaBarrier, kThreads);
  dump(params.out, smem, kWords);
}

FP8GEMM_HOST_DEVICE constexpr GemmConfig epilogue_config(uint32_t block_n, OutType type) {
  GemmConfig config;
  config.block_m = kMmaM;
  config.block_n = block_n;
  config.num_consumers = 1;
  config.d_type = type;
  config.accumulate = true;
  return config;
}

// Loads the 64 rows of maps[0] as an accumulator tile, adds it to the fragments of `in`, writes
// them as the epilogue does and stores them through maps[1]. out: fragments after the addition,
// then shared memory after the writes.
template <uint32_t kN, OutType kType>
FP8GEMM_DEVICE void epilogue(const Params& params) {
  constexpr GemmConfig kConfig = epilogue_config(kN, kType);
  constexpr uint32_t kBytes = kMmaM * kN * element_bytes(kType);
  constexpr uint32_t kBoxBytes = d_box_bytes(kConfig);
  constexpr uint32_t kFragment = kN / 2;
  const uint32_t smem = ptx::dynamic_smem();
  const uint32_t bar = smem + kBarrierOffset;
  const uint32_t thread = ptx::thread_idx();
  publish(bar, 1);
  if (thread == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, kBytes);
    for (uint32_t box = 0; box < kBytes / kBoxBytes; ++box) {
      ptx::cp_async_bulk_tensor_2d_g2s(&params.maps[0], bar, smem + box * kBoxBytes,
                                       box * d_box_columns(kConfig), 0);
    }
  }
  float accum[kFragment];
  FP8GEMM_UNROLL
  for (uint32_t i = 0; i < kFragment; ++i) {
    accum[i] = ptx::uint_as_float(params.in[thread * kFragment + i]);
  }
  const auto reorder = [&] {
    if constexpr (kType == OutType::kF32) BlockOrder<kConfig>::apply(accum);
  };
  ptx::mbarrier_wait_parity(bar, 0);
  reorder();
  add_accumulator<kConfig>(smem, accum);
  reorder();  // back again
  FP8GEMM_UNROLL
  for (uint32_t i = 0; i < kFragment; ++i) {
    params.out[thread * kFragment + i] = __builtin_bit_cast(uint32_t, accum[i]);
  }
  ptx::bar_warp_sync();  // as in store_tile: a warp overwrites only what it has read itself
  reorder();
  write_slice<kConfig>(smem, accum);
  ptx::fence_proxy_async_shared_cta();
  ptx::barrier_sync(kCtaBarrier, kThreads);
  if (thread == 0) {
    for (uint32_t box = 0; box < kBytes / kBoxBytes; ++box) {
      ptx::cp_async_bulk_tensor_2d_s2g(&params.maps[1], smem + box * kBoxBytes,
                                       box * d_box_columns(kConfig), 0);
    }
    ptx::cp_async_bulk_commit_group();
    ptx::cp_async_bulk_wait_group_read<0>();
  }
  dump(params.out + kThreads * kFragment, smem, kBytes / 4);
}

// args: number of input words. out: per pair (high, low) its bfloat16x2 and its float16x2.
FP8GEMM_DEVICE void narrowing(const Params& params) {
  for (uint32_t i = ptx::thread_idx(); i < params.args[0] / 2; i += kThreads) {
    const float high = ptx::uint_as_float(params.in[2 * i]);
    const float low = ptx::uint_as_float(params.in[2 * i + 1]);
    params.out[2 * i] = ptx::cvt_rn_bf16x2_f32(high, low);
    params.out[2 * i + 1] = ptx::cvt_rn_f16x2_f32(high, low);
  }
}

// args: number of input words. out: for each the float32 of the half in its low 16 bits.
FP8GEMM_DEVICE void widening(const Params& params) {
  for (uint32_t i = ptx::thread_idx(); i < params.args[0]; i += kThreads) {
    params.out[i] = __builtin_bit_cast(uint32_t, ptx::cvt_f32_f16(params.in[i] & 0xffffu));
  }
}

// As narrowing, out: per pair its e5m2x2 and e4m3x2 in one word, and the float16x2 of the latter.
FP8GEMM_DEVICE void fp8_conversions(const Params& params) {
  for (uint32_t i = ptx::thread_idx(); i < params.args[0] / 2; i += kThreads) {
    const float high = ptx::uint_as_float(params.in[2 * i]);
    const float low = ptx::uint_as_float(params.in[2 * i + 1]);
    const uint32_t e4m3 = ptx::cvt_rn_satfinite_e4m3x2_f32(high, low);
    params.out[2 * i] = ptx::cvt_rn_satfinite_e5m2x2_f32(high, low) << 16 | e4m3;
    params.out[2 * i + 1] = ptx::cvt_rn_f16x2_e4m3x2(e4m3);
  }
}

// args: number of input words, five for each x: x, least and most of 2^x, least and most of 1 / x.
// out: whether both results lie between, or are NaN where the bounds are.
FP8GEMM_DEVICE void approximations(const Params& params) {
  const auto is_between = [](float x, float least, float most) {
    return least != least ? x != x : least <= x && x <= most;
  };
  for (uint32_t i = ptx::thread_idx(); i < params.args[0] / 5; i += kThreads) {
    float in[5];
    for (uint32_t j = 0; j < 5; ++j) in[j] = ptx::uint_as_float(params.in[5 * i + j]);
    params.out[2 * i] = is_between(ptx::ex2_approx_ftz_f32(in[0]), in[1], in[2]);
    params.out[2 * i + 1] = is_between(ptx::rcp_approx_ftz_f32(in[0]), in[3], in[4]);
  }
}

// ---- Barriers and registers --------------------------------------------------------------------

// Warp 0 hands words to the other three warps through one slot, more often than a barrier has
// phases. out: what each receiving thread read in each round.
FP8GEMM_DEVICE void mbarrier_phases(const Params& params) {
  constexpr uint32_t kReceivers = kThreads - kWarpThreads;
  const uint32_t slot = ptx::dynamic_smem();
  const uint32_t full = slot + kBarrierOffset;
  const uint32_t empty = full + kBarrierBytes;
  const uint32_t thread = ptx::thread_idx();
  if (thread == 0) ptx::mbarrier_init(empty, kReceivers);
  publish(full, 1);
  for (uint32_t round = 0; round < params.args[0]; ++round) {
    if (thread >= kWarpThreads) {
      ptx::mbarrier_wait_parity(full, round % 2);
      params.out[round * kReceivers + thread - kWarpThreads] = ptx::ld_shared_u32(slot);
      ptx::mbarrier_arrive(empty);
    } else if (thread == 0) {
      ptx::mbarrier_wait_parity(empty, round % 2 ^ 1);
      store_word(slot, params.in[round]);
      ptx::mbarrier_arrive(full);
    }
  }
}

// Two warpgroups with a barrier each, then one for both. out: what each thread reads of its own and
// of the other warpgroup.
FP8GEMM_DEVICE void named_barriers(const Params& params) {
  const uint32_t smem = ptx::dynamic_smem();
  const uint32_t thread = ptx::thread_idx();
  const uint32_t group = thread / kWarpgroupThreads;
  const uint32_t neighbour = group * kWarpgroupThreads + (thread + 37) % kWarpgroupThreads;
  store_word(smem + 4 * thread, params.in[thread]);
  ptx::barrier_sync(kFirstConsumerBarrier + group, kWarpgroupThreads);
  params.out[thread] = ptx::ld_shared_u32(smem + 4 * neighbour);
  ptx::barrier_sync(kCtaBarrier, 2 * kWarpgroupThreads);
  params.out[2 * kWarpgroupThreads + thread] =
      ptx::ld_shared_u32(smem + 4 * (2 * kWarpgroupThreads - 1 - thread));
}

// out: per thread of the grid the special registers, and per warp the number of elected lanes.
FP8GEMM_DEVICE void special_registers(const Params& params) {
  constexpr uint32_t kFields = 7;
  const uint32_t smem = ptx::dynamic_smem();
  const uint32_t thread = ptx::thread_idx();
  const uint32_t warp_slot = smem + 4 * (thread - ptx::lane_idx());
  store_word(smem + 4 * thread, ptx::elect_sync() ? 1 : 0);
  ptx::bar_warp_sync();
  uint32_t elected = 0;
  for (uint32_t lane = 0; lane < kWarpThreads; ++lane) {
    elected += ptx::ld_shared_u32(warp_slot + 4 * lane);
  }
  uint32_t* out = params.out + kFields * (ptx::block_idx() * kThreads + thread);
  out[0] = thread;
  out[1] = ptx::block_idx();
  out[2] = ptx::grid_dim();
  out[3] = ptx::lane_idx();
  out[4] = ptx::warp_idx();
  out[5] = ptx::cluster_ctarank();
  out[6] = elected;
}

// out: per thread the pair it stored, read back word by word, and another one read as a pair.
FP8GEMM_DEVICE void shared_vectors(const Params& params) {
  const uint32_t slot = ptx::dynamic_smem() + 8 * ptx::thread_idx();
  const uint32_t* in = params.in + 4 * ptx::thread_idx();
  uint32_t* out = params.out + 4 * ptx::thread_idx();
  float x;
  float y;
  ptx::st_shared_v2_f32(slot, ptx::uint_as_float(in[0]), ptx::uint_as_float(in[1]));
  out[0] = ptx::ld_shared_u32(slot);
  out[1] = __builtin_bit_cast(uint32_t, ptx::ld_shared_f32(slot + 4));
  store_word(slot, in[2]);
  store_word(slot + 4, in[3]);
  ptx::ld_shared_v2_f32(slot, x, y);
  out[2] = __builtin_bit_cast(uint32_t, x);
  out[3] = __builtin_bit_cast(uint32_t, y);
}

// The roles' register budgets: two warpgroups take what the third gives up.
FP8GEMM_DEVICE void register_budgets(const Params& params) {
  constexpr GemmConfig kConfig;
  if (ptx::warp_idx() >= 2 * kWarpgroupWarps) {
    ptx::setmaxnreg_dec<kConfig.producer_registers()>();
  } else {
    ptx::setmaxnreg_inc<kConfig.consumer_registers()>();
  }
  params.out[ptx::thread_idx()] = ptx::thread_idx() + 1;
}

// A launch without a predecessor passes griddepcontrol.wait; loads through the read-only path.
FP8GEMM_DEVICE void dependent_launch(const Params& params) {
  ptx::griddepcontrol_wait();
  const float* in = reinterpret_cast<const float*>(params.in);
  const float value = ptx::ld_global_nc_f32(in + ptx::thread_idx());
  params.out[ptx::thread_idx()] = __builtin_bit_cast(uint32_t, value);
  ptx::griddepcontrol_launch_dependents();
}

}  // namespace fp8gemm::conformance
