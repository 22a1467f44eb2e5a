// SPDX-License-Identifier: Apache-2.0
// Simulator twin of kernels/ptx/fp8.cuh.
#pragma once
#include <ptx/base.cuh>

#include <cmath>

namespace fp8gemm::sim {

inline float FlushSubnormal(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? 0 * x : x; }

}  // namespace fp8gemm::sim

namespace fp8gemm::ptx {

FP8GEMM_DEVICE uint32_t cvt_rn_satfinite_e4m3x2_f32(float high, float low) {
  return sim::PackE4m3x2(high, low);
}
FP8GEMM_DEVICE uint32_t cvt_rn_satfinite_e5m2x2_f32(float high, float low) {
  return sim::PackE5m2x2(high, low);
}
FP8GEMM_DEVICE uint32_t cvt_rn_f16x2_e4m3x2(uint32_t pair) { return sim::E4m3x2ToF16x2(pair); }
FP8GEMM_DEVICE float min_nan_f32(float x, float y) { return x != x || x < y ? x : y; }
FP8GEMM_DEVICE float max_nan_f32(float x, float y) { return x != x || x > y ? x : y; }
FP8GEMM_DEVICE void forget(uint32_t& word) { (void)word; }
// Rounded to nearest, which is one of the results that the hardware may have.
FP8GEMM_DEVICE float ex2_approx_ftz_f32(float x) { return sim::FlushSubnormal(std::exp2(x)); }
FP8GEMM_DEVICE float rcp_approx_ftz_f32(float x) {
  return sim::FlushSubnormal(1.0f / sim::FlushSubnormal(x));
}
FP8GEMM_DEVICE uint32_t redux_sync_max_u32(uint32_t value) { return sim::ReduxMax(value); }

}  // namespace fp8gemm::ptx
