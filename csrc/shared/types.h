// SPDX-License-Identifier: Apache-2.0
// Integer types and the few arithmetic helpers that host and device code share.
#pragma once

#if defined(__CUDACC_RTC__)
// NVRTC gets no system headers: these are the x86-64 and AArch64 Linux definitions.
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
#define FP8GEMM_HOST_DEVICE __host__ __device__
#else
#include <cstdint>
#define FP8GEMM_HOST_DEVICE
#endif

namespace fp8gemm {

template <typename T>
FP8GEMM_HOST_DEVICE constexpr T ceil_div(T a, T b) {
  return a / b + (a % b != 0 ? 1 : 0);
}

template <typename T>
FP8GEMM_HOST_DEVICE constexpr T align_up(T a, T b) {
  return ceil_div(a, b) * b;
}

template <typename T>
FP8GEMM_HOST_DEVICE constexpr T min(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
FP8GEMM_HOST_DEVICE constexpr T max(T a, T b) {
  return a < b ? b : a;
}

FP8GEMM_HOST_DEVICE constexpr uint32_t gcd(uint32_t a, uint32_t b) {
  while (b != 0) {
    const uint32_t r = a % b;
    a = b;
    b = r;
  }
  return a;
}

}  // namespace fp8gemm
