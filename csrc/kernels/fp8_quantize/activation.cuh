// SPDX-License-Identifier: Apache-2.0
// Activations and norms of x, computed in float32 on the way into a quantizer and rounded to the
// type of x, as jax_fp8gemm/_src/xla/activation.py computes them: norms bit for bit, activations up
// to the rounding of the exponential.
#pragma once
#include <fp8_quantize/quantize_scale.cuh>

namespace fp8gemm {

// gelu(x), in its form with tanh, is x / (1 + e^-(kCubic x^3 + kLinear x)).
inline constexpr float kLinear = 1.5957691216057308f;  // 2 sqrt(2 / pi)
inline constexpr float kCubic = kLinear * 0.044715f;
inline constexpr float kLog2E = 1.4426950408889634f;

// silu(x) or gelu(x).
template <QuantizeLayout kLayout>
FP8GEMM_DEVICE float activation(float x) {
  float exponent = x;
  if constexpr (kLayout != QuantizeLayout::kSwiGLU) exponent = x * (kLinear + kCubic * (x * x));
  return x * ptx::rcp_approx_ftz_f32(1.0f + ptx::ex2_approx_ftz_f32(-kLog2E * exponent));
}

// The activation of four elements, times `up` where it is gated, in their place.
template <QuantizeLayout kLayout, XType kType>
FP8GEMM_DEVICE void activate(Elements<kType, 4>& x, const Elements<kType, 4>& up) {
  constexpr bool kIsGated = kLayout != QuantizeLayout::kGELU;
  FP8GEMM_UNROLL
  for (uint32_t i = 0; i < 4; i += 2) {
    float y[2];
    FP8GEMM_UNROLL
    for (uint32_t j = 0; j < 2; ++j) {
      y[j] = activation<kLayout>(x.get(i + j));
      if constexpr (kIsGated) y[j] *= up.get(i + j);
    }
    x.set_pair(i, y[0], y[1]);
  }
}

// Four elements of a row times a factor of the row and one of each column, in their place. Those
// past the first `valid` stay zeros, whatever their factors are.
template <XType kType>
FP8GEMM_DEVICE void normalize(Elements<kType, 4>& x, float row_factor,
                              const Elements<XType::kF32, 4>& column_factors, uint32_t valid) {
  FP8GEMM_UNROLL
  for (uint32_t i = 0; i < 4; i += 2) {
    float y[2];
    FP8GEMM_UNROLL
    for (uint32_t j = 0; j < 2; ++j) {
      const float product = x.get(i + j) * row_factor * column_factors.get(i + j);
      y[j] = i + j < valid ? product : 0.0f;
    }
    x.set_pair(i, y[0], y[1]);
  }
}

}  // namespace fp8gemm
