// SPDX-License-Identifier: Apache-2.0
// Products of fp8 are exact in float32, so both models differ only in how they are summed.
//
// Hopper's tensor cores (arXiv 2512.07004): the 32 products and the accumulator are truncated to 13
// fraction bits below the largest of their exponents, summed exactly, and the sum is truncated to
// 13 fraction bits of its own exponent.
//
// Written for the compiler's vectorizer: to be built with -O3.
#include "sim/engine/mma_math.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace fp8gemm::sim {
namespace {

constexpr uint32_t kDepth = kMmaDepth;
constexpr uint32_t kStride = kMaxMmaColumns + 16;  // of transposed operands; spreads cache sets
constexpr uint32_t kFractionBits = 13;

// One fp8 format by code.
struct Fp8Table {
  float value[256];
  float finite_value[256];  // 0 in place of infinity and NaN
  float magnitude[256];     // 2^exponent, the smallest normal one for subnormals; 0 for zero
  bool is_special[256];     // infinity or NaN
};

Fp8Table MakeTable(int exponent_bits, bool has_infinity) {
  Fp8Table table{};
  const int fraction_bits = 7 - exponent_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  for (int code = 0; code < 256; ++code) {
    const int magnitude = code & 127;
    const int field = magnitude >> fraction_bits;
    const int fraction = magnitude & ((1 << fraction_bits) - 1);
    const int significand = (field != 0 ? (1 << fraction_bits) : 0) + fraction;
    const int exponent = std::max(field, 1) - bias;
    const bool is_top = field == (1 << exponent_bits) - 1;
    const bool is_nan = has_infinity ? is_top && fraction != 0 : magnitude == 127;
    const bool is_infinite = has_infinity && is_top && fraction == 0;
    float value = std::ldexp(static_cast<float>(significand), exponent - fraction_bits);
    if (is_nan) value = std::numeric_limits<float>::quiet_NaN();
    if (is_infinite) value = std::numeric_limits<float>::infinity();
    const int sign = code < 128 ? 1 : -1;
    table.value[code] = std::copysign(value, static_cast<float>(sign));
    table.magnitude[code] = significand == 0 ? 0.0f : std::ldexp(1.0f, exponent);
    table.is_special[code] = is_nan || is_infinite;
    table.finite_value[code] = table.is_special[code] ? 0.0f : table.value[code];
  }
  return table;
}

const Fp8Table kTables[] = {MakeTable(4, false), MakeTable(5, true)};  // e4m3, e5m2

template <typename T>
using Transposed = T[kDepth][kStride];

// (n, 32) codes to (32, n) table entries.
template <typename T>
void Transpose(const uint8_t* codes, uint32_t n, const T* table, Transposed<T>& out) {
  for (uint32_t column = 0; column < n; ++column) {
    for (uint32_t k = 0; k < kDepth; ++k) out[k][column] = table[codes[column * kDepth + k]];
  }
}

// ---- Exact --------------------------------------------------------------------------------------

// Two rows at a time share what they load of `b`.
template <uint32_t kWidth>
inline void AddProducts(const float* a, const float* b, uint32_t n, float* tile) {
  float sum[2][kWidth];
  for (uint32_t i = 0; i < kWidth; ++i) sum[0][i] = tile[i];
  for (uint32_t i = 0; i < kWidth; ++i) sum[1][i] = tile[n + i];
  for (uint32_t k = 0; k < kDepth; ++k) {
    const float a0 = a[k];
    const float a1 = a[kDepth + k];
    const float* const row = b + k * kStride;
    for (uint32_t i = 0; i < kWidth; ++i) sum[0][i] += a0 * row[i];
    for (uint32_t i = 0; i < kWidth; ++i) sum[1][i] += a1 * row[i];
  }
  for (uint32_t i = 0; i < kWidth; ++i) tile[i] = sum[0][i];
  for (uint32_t i = 0; i < kWidth; ++i) tile[n + i] = sum[1][i];
}

void AddAllProducts(const float* a, const float* b, uint32_t n, float* tile) {
  for (uint32_t row = 0; row < kMmaRows; row += 2) {
    const float* const a_rows = a + row * kDepth;
    float* const out = tile + row * n;
    uint32_t column = 0;
    for (; column + 32 <= n; column += 32) {
      AddProducts<32>(a_rows, b + column, n, out + column);
    }
    for (; column < n; column += 8) AddProducts<8>(a_rows, b + column, n, out + column);
  }
}

void MultiplyExact(const MmaOperands& operands, float* tile) {
  alignas(64) static Transposed<float> b;
  alignas(64) static float a[kMmaRows * kDepth];
  const Fp8Table& a_table = kTables[operands.a_type];
  for (uint32_t i = 0; i < kMmaRows * kDepth; ++i) a[i] = a_table.value[operands.a[i]];
  Transpose(operands.b, operands.n, kTables[operands.b_type].value, b);
  AddAllProducts(a, &b[0][0], operands.n, tile);
}

// ---- Hopper --------------------------------------------------------------------------------
//
// Exponents are kept as powers of two in float32, whose products and maxima are exact; truncation
// below 13 bits of the largest is a scaling by a power of two and a conversion to integer.

constexpr uint32_t kExponentMask = 0x7f800000;
constexpr uint32_t kExponentOne = 1u << 23;
constexpr uint32_t kTruncationMask = ~((1u << (23 - kFractionBits)) - 1);

// 2^13 / power.
float InverseScale(float power) {
  return std::bit_cast<float>((2 * 127 + kFractionBits) * kExponentOne -
                              std::bit_cast<uint32_t>(power));
}

float TruncateFraction(float value) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) & kTruncationMask);
}

struct HopperOperand {
  alignas(64) Transposed<float> value;
  alignas(64) Transposed<float> magnitude;
};

// row += a * b^T for one row. What is not finite counts as zero.
void AddRowHopper(const float* a_value, const float* a_magnitude, const HopperOperand& b,
                  uint32_t n, float* row) {
  constexpr float kSmallest = 0x1p-100f;  // no product is as small
  alignas(64) float largest[kMaxMmaColumns];
  alignas(64) float scale[kMaxMmaColumns];
  alignas(64) float start[kMaxMmaColumns];
  alignas(64) int32_t sum[kMaxMmaColumns];
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t exponent = std::bit_cast<uint32_t>(row[i]) & kExponentMask;
    start[i] = exponent == kExponentMask ? 0.0f : row[i];
    largest[i] = exponent == kExponentMask ? kSmallest : std::bit_cast<float>(exponent);
    largest[i] = largest[i] > kSmallest ? largest[i] : kSmallest;
  }
  for (uint32_t k = 0; k < kDepth; ++k) {
    const float a = a_magnitude[k];
    for (uint32_t i = 0; i < n; ++i) {
      const float magnitude = a * b.magnitude[k][i];
      largest[i] = magnitude > largest[i] ? magnitude : largest[i];
    }
  }
  for (uint32_t i = 0; i < n; ++i) scale[i] = InverseScale(largest[i]);
  for (uint32_t i = 0; i < n; ++i) sum[i] = static_cast<int32_t>(start[i] * scale[i]);
  for (uint32_t k = 0; k < kDepth; ++k) {
    const float a = a_value[k];
    for (uint32_t i = 0; i < n; ++i) {
      sum[i] += static_cast<int32_t>(a * b.value[k][i] * scale[i]);
    }
  }
  for (uint32_t i = 0; i < n; ++i) {
    const float unit = largest[i] * 0x1p-13f;
    const float result = TruncateFraction(static_cast<float>(sum[i])) * unit;
    // All products are zero, and the start, which may be smaller still, is the sum. -0 becomes +0.
    const float alone = TruncateFraction(start[i]) + 0.0f;
    row[i] = largest[i] == kSmallest ? alone : result;
  }
}

bool HasSpecial(const uint8_t* codes, const Fp8Table& table) {
  return std::any_of(codes, codes + kDepth, [&](uint8_t code) { return table.is_special[code]; });
}

// Infinities and NaN follow IEEE rules, whatever the rounding of the rest; NaN is canonical.
float SumSpecial(const uint8_t* a, const Fp8Table& a_table, const uint8_t* b,
                 const Fp8Table& b_table, float start) {
  float sum = start;
  for (uint32_t k = 0; k < kDepth; ++k) sum += a_table.value[a[k]] * b_table.value[b[k]];
  return std::isnan(sum) ? std::bit_cast<float>(0x7fffffffu) : sum;
}

void MultiplyHopper(const MmaOperands& operands, float* tile) {
  static HopperOperand b;
  const Fp8Table& a_table = kTables[operands.a_type];
  const Fp8Table& b_table = kTables[operands.b_type];
  const uint32_t n = operands.n;
  Transpose(operands.b, n, b_table.finite_value, b.value);
  Transpose(operands.b, n, b_table.magnitude, b.magnitude);
  bool b_special[kMaxMmaColumns];
  for (uint32_t i = 0; i < n; ++i) b_special[i] = HasSpecial(operands.b + i * kDepth, b_table);
  for (uint32_t row = 0; row < kMmaRows; ++row) {
    const uint8_t* const a = operands.a + row * kDepth;
    float* const out = tile + row * n;
    float value[kDepth];
    float magnitude[kDepth];
    float before[kMaxMmaColumns];
    for (uint32_t k = 0; k < kDepth; ++k) value[k] = a_table.finite_value[a[k]];
    for (uint32_t k = 0; k < kDepth; ++k) magnitude[k] = a_table.magnitude[a[k]];
    std::copy_n(out, n, before);
    AddRowHopper(value, magnitude, b, n, out);
    const bool a_special = HasSpecial(a, a_table);
    for (uint32_t i = 0; i < n; ++i) {
      if (!a_special && !b_special[i] && std::isfinite(before[i])) continue;
      out[i] = SumSpecial(a, a_table, operands.b + i * kDepth, b_table, before[i]);
    }
  }
}

}  // namespace

void Multiply(const MmaOperands& operands, Numerics numerics, bool accumulate, float* tile) {
  if (!accumulate) std::memset(tile, 0, kMmaRows * operands.n * sizeof(float));
  if (numerics == kNumericsHopper) {
    MultiplyHopper(operands, tile);
  } else {
    MultiplyExact(operands, tile);
  }
}

}  // namespace fp8gemm::sim
