// SPDX-License-Identifier: Apache-2.0
// cvt: float32 to and from the 16-bit formats, rounding to nearest even, with integers only.
#include <sim/device/entry_points.h>

#include <bit>

namespace fp8gemm::sim {
namespace {

constexpr uint32_t kCanonicalNan16 = 0x7fff;

bool IsNan(uint32_t bits) { return (bits & 0x7fffffff) > 0x7f800000; }

// Drops `shift` bits of `value`, rounding to nearest even.
uint32_t RoundShift(uint32_t value, uint32_t shift) {
  const uint32_t half = (1u << (shift - 1)) - 1;
  return (value + half + ((value >> shift) & 1)) >> shift;
}

// A carry out of the significand raises the exponent, up to infinity, by itself.
uint32_t ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return IsNan(bits) ? kCanonicalNan16 : RoundShift(bits, 16) & 0xffff;
}

uint32_t ToF16(float value) {
  constexpr uint32_t kInfinity = 0x7c00;
  constexpr uint32_t kOverflow = 0x47800000;     // 2^16
  constexpr uint32_t kSmallestNormal = 0x38800000;  // 2^-14
  constexpr uint32_t kRoundsToZero = 0x33000000;    // 2^-25, half the smallest subnormal
  constexpr uint32_t kRebias = (127 - 15) << 23;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (IsNan(bits)) return kCanonicalNan16;
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude >= kOverflow) return sign | kInfinity;
  if (magnitude >= kSmallestNormal) return sign | RoundShift(magnitude - kRebias, 13);
  if (magnitude <= kRoundsToZero) return sign;
  // A subnormal is a multiple of 2^-24.
  const uint32_t significand = (magnitude & 0x7fffff) | 0x800000;
  return sign | RoundShift(significand, 126 - (magnitude >> 23));
}

}  // namespace

uint32_t PackBf16x2(float high, float low) { return ToBf16(high) << 16 | ToBf16(low); }

uint32_t PackF16x2(float high, float low) { return ToF16(high) << 16 | ToF16(low); }

float F16ToF32(uint32_t half) {
  const uint32_t sign = (half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 31;
  const uint32_t fraction = half & 0x3ff;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  const uint32_t biased = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | biased << 23 | fraction << 13);
}

}  // namespace fp8gemm::sim
