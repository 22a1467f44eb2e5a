// SPDX-License-Identifier: Apache-2.0
// What the quantize kernels share: loading elements, scales, and conversion.
//
// Every number equals, bit for bit, what jax_fp8gemm/_src/xla/quantize.py computes, but for the
// bits of a NaN: amax on bit patterns, where Inf and then NaN are largest; amax / max and 1 / scale
// correctly rounded; values x * (1 / scale) rounded to nearest even.
#pragma once
#include <ptx/fp8.cuh>
#include <ptx/global.cuh>
#include <ptx/warp.cuh>
#include <shared/quantize_config.h>
#include <shared/quantize_params.h>

namespace fp8gemm {

inline constexpr uint32_t kInfinityBits = 0x7f800000;
inline constexpr float kSmallestNormal = 0x1p-126f;
template <Fp8Type kType>
inline constexpr float kLargest = kType == Fp8Type::kE4M3 ? 448.0f : 57344.0f;

// `kCount` elements next to each other as they lie in memory, from the low bits up.
template <XType kType, uint32_t kCount>
struct Elements {
  static constexpr uint32_t kElementBytes = element_bytes(kType);
  static constexpr uint32_t kBytes = kCount * kElementBytes;
  static constexpr uint32_t kWords = ceil_div(kBytes, 4u);
  uint32_t words[kWords];

  // The first `valid` elements at `addr`, zeros for the others. With `whole`, `addr` is a multiple
  // of kBytes and either all or none are valid.
  FP8GEMM_DEVICE void load(const uint8_t* addr, uint32_t valid, bool whole) {
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < kWords; ++i) words[i] = 0;
    if (whole) {
      if (valid != 0) load_whole(addr);
      return;
    }
    FP8GEMM_UNROLL
    for (uint32_t i = 0; i < kCount; ++i) {
      if (i >= valid) continue;
      const uint32_t bit = i * kElementBytes * 8;
      words[bit / 32] |= load_one(addr + i * kElementBytes) << bit % 32;
    }
  }

  FP8GEMM_DEVICE float get(uint32_t i) const {
    const uint32_t word = words[i * kElementBytes / 4];
    if constexpr (kType == XType::kF32) {
      return ptx::uint_as_float(word);
    } else if constexpr (kType == XType::kBF16) {
      return ptx::uint_as_float(i % 2 != 0 ? word & 0xffff0000 : word << 16);
    } else if constexpr (kType == XType::kF16) {
      return ptx::cvt_f32_f16(i % 2 != 0 ? word >> 16 : word & 0xffff);
    } else {
      const uint32_t halves = ptx::cvt_rn_f16x2_e4m3x2(word >> i / 2 % 2 * 16 & 0xffff);
      return ptx::cvt_f32_f16(i % 2 != 0 ? halves >> 16 : halves & 0xffff);
    }
  }

  // Rounds two numbers to elements `i` and `i + 1`, of an even `i`.
  FP8GEMM_DEVICE void set_pair(uint32_t i, float low, float high) {
    if constexpr (kType == XType::kF32) {
      words[i] = ptx::float_as_uint(low);
      words[i + 1] = ptx::float_as_uint(high);
    } else if constexpr (kType == XType::kBF16) {
      words[i / 2] = ptx::cvt_rn_bf16x2_f32(high, low);
    } else {
      static_assert(kType == XType::kF16);
      words[i / 2] = ptx::cvt_rn_f16x2_f32(high, low);
    }
  }

 private:
  FP8GEMM_DEVICE void load_whole(const uint8_t* addr) {
    if constexpr (kBytes == 16) {
      ptx::ld_global_nc_v4_u32(addr, words[0], words[1], words[2], words[3]);
    } else if constexpr (kBytes == 8) {
      ptx::ld_global_nc_v2_u32(addr, words[0], words[1]);
    } else if constexpr (kBytes == 4) {
      words[0] = ptx::ld_global_nc_u32(addr);
    } else {
      static_assert(kBytes == 2);
      words[0] = ptx::ld_global_nc_u16(addr);
    }
  }

  FP8GEMM_DEVICE static uint32_t load_one(const uint8_t* addr) {
    if constexpr (kElementBytes == 4) return ptx::ld_global_nc_u32(addr);
    if constexpr (kElementBytes == 2) return ptx::ld_global_nc_u16(addr);
    return ptx::ld_global_nc_u8(addr);
  }
};

// Keeps halves as they are, two in a register, where the compiler would keep them as floats.
template <XType kType, uint32_t kCount, uint32_t kRows>
FP8GEMM_DEVICE void keep_halves(Elements<kType, kCount> (&elements)[kRows]) {
  if constexpr (kType == XType::kF16) {
    FP8GEMM_UNROLL
    for (uint32_t r = 0; r < kRows; ++r) {
      FP8GEMM_UNROLL
      for (uint32_t i = 0; i < elements[r].kWords; ++i) ptx::forget(elements[r].words[i]);
    }
  }
}

// Meets all threads of the CTA. The aligned barrier needs converged warps, and lanes may come from
// a branch that only some of them took.
FP8GEMM_DEVICE void sync_threads() {
  ptx::bar_warp_sync();
  ptx::barrier_sync(0, kQuantizeThreads);
}

FP8GEMM_DEVICE uint32_t magnitude_bits(float x) { return ptx::float_as_uint(x) & 0x7fffffff; }

struct BlockScale {
  float scale;
  float inverse;
};

// The scale of a block whose largest magnitude has the bits `amax_bits`.
template <QuantizeConfig kConfig>
FP8GEMM_DEVICE BlockScale block_scale(uint32_t amax_bits) {
  float scale = 1.0f;
  if (amax_bits != 0) {
    const float amax = ptx::uint_as_float(amax_bits);
    scale = ptx::max_nan_f32(amax / kLargest<kConfig.type>, kSmallestNormal);
  }
  if constexpr (kConfig.pow2) {
    const uint32_t bits = ptx::float_as_uint(scale);
    if (bits < kInfinityBits) scale = ptx::uint_as_float((bits + 0x007fffff) & kInfinityBits);
  }
  return {scale, 1.0f / scale};
}

// Values of one block. A scale that was rounded up to a power of two can be so large that the
// product with its block's largest values would be infinite: these are cut off.
template <QuantizeConfig kConfig>
class Converter {
 public:
  FP8GEMM_DEVICE explicit Converter(float inverse)
      : inverse_(inverse), limit_(kLargest<kConfig.type>) {
    if constexpr (kConfig.pow2) {
      if (inverse <= kTopInverse) limit_ = kBelow;
    }
  }

  // Four values, the first in the low byte.
  FP8GEMM_DEVICE uint32_t four(float x0, float x1, float x2, float x3) const {
    const uint32_t low = pair(x0, x1);
    return low | pair(x2, x3) << 16;
  }

 private:
  static constexpr bool kIsE4M3 = kConfig.type == Fp8Type::kE4M3;
  // With 2^e the binade of the largest number: the last value below 2^e, and 1 / 2^(128 - e).
  static constexpr float kBelow = kIsE4M3 ? 240.0f : 28672.0f;
  static constexpr float kTopInverse = kIsE4M3 ? 0x1p-120f : 0x1p-113f;

  // Two values in the low 16 bits.
  FP8GEMM_DEVICE uint32_t pair(float low, float high) const {
    low = scaled(low);
    high = scaled(high);
    if constexpr (kIsE4M3) {
      return ptx::cvt_rn_satfinite_e4m3x2_f32(high, low);
    } else {
      return ptx::cvt_rn_satfinite_e5m2x2_f32(high, low);
    }
  }

  FP8GEMM_DEVICE float scaled(float x) const {
    x *= inverse_;
    if constexpr (kConfig.pow2) x = ptx::min_nan_f32(ptx::max_nan_f32(x, -limit_), limit_);
    return x;
  }

  float inverse_;
  float limit_;
};

// Writes the first `valid` of the four bytes of `values`. With `whole` as for Elements::load.
FP8GEMM_DEVICE void store_values(uint8_t* addr, uint32_t values, uint32_t valid, bool whole) {
  if (whole) {
    if (valid != 0) ptx::st_global_u32(addr, values);
    return;
  }
  FP8GEMM_UNROLL
  for (uint32_t i = 0; i < 4; ++i) {
    if (i < valid) ptx::st_global_u8(addr + i, values >> 8 * i);
  }
}

// How many of `count` elements from `first` on lie before `end`.
FP8GEMM_DEVICE uint32_t valid_elements(uint32_t first, uint32_t count, uint32_t end) {
  return first < end ? min(end - first, count) : 0;
}

}  // namespace fp8gemm
