// SPDX-License-Identifier: Apache-2.0
// cvt: float32 to and from 16-bit and 8-bit formats, rounding to nearest even, with integers only.
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
  constexpr uint32_t kOverflow = 0x47800000;        // 2^16
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

// Rounds to a float8 with `kFraction` bits after the point; satfinite.
template <uint32_t kFraction, uint32_t kBias, uint32_t kLargest>
uint32_t ToFp8(float value) {
  constexpr uint32_t kNan = 0x7f;
  constexpr uint32_t kDropped = 23 - kFraction;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (IsNan(bits)) return kNan;
  const uint32_t sign = bits >> 24 & 0x80;
  const uint32_t magnitude = bits & 0x7fffffff;
  const uint32_t exponent = magnitude >> 23;
  if (exponent > 127 - kBias) {
    const uint32_t rounded = RoundShift(magnitude - ((127 - kBias) << 23), kDropped);
    return sign | (rounded < kLargest ? rounded : kLargest);
  }
  // A subnormal is a multiple of 2^(1 - kBias - kFraction); what is under half of it becomes zero.
  const uint32_t shift = kDropped + 128 - kBias - exponent;
  if (shift > 24) return sign;
  const uint32_t significand = (magnitude & 0x7fffff) | 0x800000;
  return sign | RoundShift(significand, shift);
}

uint32_t ToE4m3(float value) { return ToFp8<3, 7, 0x7e>(value); }
uint32_t ToE5m2(float value) { return ToFp8<2, 15, 0x7b>(value); }

uint32_t E4m3ToF16(uint32_t byte) {
  const uint32_t sign = (byte & 0x80) << 8;
  const uint32_t magnitude = byte & 0x7f;
  if (magnitude == 0x7f) return kCanonicalNan16;
  if (magnitude >= 8) return sign | ((magnitude << 7) + (8 << 10));
  // A subnormal is a multiple of 2^-9, which is normal in half precision.
  if (magnitude == 0) return sign;
  const uint32_t top = 31 - std::countl_zero(magnitude);
  return sign | (top + 6) << 10 | (magnitude << (10 - top) & 0x3ff);
}

}  // namespace

uint32_t PackBf16x2(float high, float low) { return ToBf16(high) << 16 | ToBf16(low); }

uint32_t PackF16x2(float high, float low) { return ToF16(high) << 16 | ToF16(low); }

uint32_t PackE4m3x2(float high, float low) { return ToE4m3(high) << 8 | ToE4m3(low); }

uint32_t PackE5m2x2(float high, float low) { return ToE5m2(high) << 8 | ToE5m2(low); }

uint32_t E4m3x2ToF16x2(uint32_t pair) {
  return E4m3ToF16(pair >> 8 & 0xff) << 16 | E4m3ToF16(pair & 0xff);
}

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
