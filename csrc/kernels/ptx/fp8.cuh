// SPDX-License-Identifier: Apache-2.0
// What quantization needs: conversions from and to float8, minimum and maximum that keep NaN, the
// maximum of a warp, and what activations consist of. One instruction per function, named after it.
// PTX ISA: "cvt", "min", "max", "redux.sync", "ex2", "rcp", sm_89 and sm_80.
#pragma once
#include <ptx/base.cuh>

namespace fp8gemm::ptx {

// Two floats rounded to nearest even in the low 16 bits; `low` in the low byte. What is too large
// becomes the largest number, NaN stays NaN.
FP8GEMM_DEVICE uint32_t cvt_rn_satfinite_e4m3x2_f32(float high, float low) {
  uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}

FP8GEMM_DEVICE uint32_t cvt_rn_satfinite_e5m2x2_f32(float high, float low) {
  uint16_t packed;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}

// Two numbers, exactly, from the low 16 bits to two halves.
FP8GEMM_DEVICE uint32_t cvt_rn_f16x2_e4m3x2(uint32_t pair) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
  return halves;
}

FP8GEMM_DEVICE float min_nan_f32(float x, float y) {
  float least;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(x), "f"(y));
  return least;
}

FP8GEMM_DEVICE float max_nan_f32(float x, float y) {
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(x), "f"(y));
  return most;
}

// The same bits, which the compiler takes for new ones: what it made of them before, it makes again
// rather than keep in registers. No instruction.
FP8GEMM_DEVICE void forget(uint32_t& word) { asm volatile("" : "+r"(word)); }

// 2^x within 2 units in the last place; what is subnormal counts as 0.
FP8GEMM_DEVICE float ex2_approx_ftz_f32(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// 1 / x within 1 unit in the last place; what is subnormal counts as 0.
FP8GEMM_DEVICE float rcp_approx_ftz_f32(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
}

// The largest of the lanes' values, in every lane. The warp must be converged.
FP8GEMM_DEVICE uint32_t redux_sync_max_u32(uint32_t value) {
  uint32_t most;
  asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(most) : "r"(value));
  return most;
}

}  // namespace fp8gemm::ptx
