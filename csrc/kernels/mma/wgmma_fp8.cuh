// SPDX-License-Identifier: Apache-2.0
// wgmma.mma_async.sync.aligned.m64nNk32.f32 of two fp8 operands in shared memory.
//
// partial (64, kN) f32 (+)= a (64, 32) * b (kN, 32)^T. Element i of a thread's fragment is
//   row    16 * (warp in warpgroup) + lane / 4 + 8 * ((i >> 1) & 1)
//   column 8 * (i >> 2) + 2 * (lane % 4) + (i & 1)
// PTX ISA: "Asynchronous Warpgroup Level Matrix Multiply-Accumulate", sm_90a.
#pragma once
#include <ptx/base.cuh>
#include <shared/gemm_config.h>

namespace fp8gemm::ptx {

// One specialization per kN, with `run<a type, b type>`; see generate_wgmma_table.py.
template <uint32_t kN>
struct WgmmaM64K32;

#include <mma/wgmma_fp8_table.inc>

// All 128 threads of the warpgroup, between wgmma_fence and wgmma_commit_group. `scale_d` false
// overwrites the accumulators, true adds to them.
template <Fp8Type kA, Fp8Type kB, uint32_t kN>
FP8GEMM_DEVICE void wgmma_m64k32(float (&d)[kN / 2], uint64_t a_desc, uint64_t b_desc,
                                 bool scale_d) {
  WgmmaM64K32<kN>::template run<kA, kB>(d, a_desc, b_desc, scale_d);
}

}  // namespace fp8gemm::ptx
