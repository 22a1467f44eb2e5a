// SPDX-License-Identifier: Apache-2.0
// Products of fp8 are exact in float32, so both models differ only in how they are summed.
//
// Hopper's tensor cores (arXiv 2512.07004): the 32 products and the accumulator are truncated to 13
// fraction bits below the largest of their exponents, summed exactly, and the sum is truncated to
// 13 fraction bits of its own exponent.
#include "sim/engine/mma_math.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace fp8gemm::sim {
namespace {

// Wider vectors where the CPU has them; the results are the same bit for bit, because a product
// that is exact rounds nothing whether or not it is fused.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FP8GEMM_SIM_CLONES \
  __attribute__((target_clones("default", "arch=haswell", "arch=skylake-avx512"), optimize("O3")))
#else
#define FP8GEMM_SIM_CLONES
#endif

constexpr uint32_t kDepth = kMmaDepth;
constexpr uint32_t kStride = kMaxMmaColumns;  // of transposed operands
constexpr int32_t kFractionBits = 13;
// Below the exponent of anything that is not zero.
constexpr int32_t kZeroExponent = -1000;

// One fp8 format: values, and the integers sign * significand and exponent with
// value = significand * 2^(exponent - 3).
struct Fp8Table {
  float value[256];
  int32_t significand[256];
  int32_t exponent[256];
  bool is_special[256];  // infinity or NaN
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
    table.significand[code] = sign * (significand << (3 - fraction_bits));
    table.exponent[code] = exponent;
    table.is_special[code] = is_nan || is_infinite;
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

FP8GEMM_SIM_CLONES
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

// ---- Hopper -------------------------------------------------------------------------------------

struct AlignedTerms {
  alignas(64) Transposed<int32_t> significand;
  alignas(64) Transposed<int32_t> exponent;
};

// Drops what lies below 13 fraction bits of `maximum`, toward zero. `magnitude` is in units of
// 2^(exponent - 6), as a product of two significands is.
inline int32_t AlignProduct(int32_t product, int32_t exponent, int32_t maximum) {
  const int32_t shift = std::min(maximum - exponent, 31);
  const int32_t sign = product >> 31;
  const uint32_t magnitude = static_cast<uint32_t>((product ^ sign) - sign);
  const int32_t aligned = static_cast<int32_t>((magnitude << (kFractionBits - 6)) >> shift);
  return (aligned ^ sign) - sign;
}

inline int32_t FloatExponent(uint32_t bits) {
  const int32_t field = static_cast<int32_t>(bits >> 23 & 255);
  if (field != 0) return field - 127;
  return (bits & 0x7fffff) != 0 ? -126 : kZeroExponent;
}

inline int32_t AlignFloat(uint32_t bits, int32_t maximum) {
  const uint32_t implicit = (bits >> 23 & 255) != 0 ? 0x800000u : 0u;
  const uint32_t significand = (bits & 0x7fffff) | implicit;
  const int32_t shift = std::min(23 - kFractionBits + maximum - FloatExponent(bits), 31);
  const int32_t aligned = static_cast<int32_t>(significand >> shift);
  return bits >> 31 != 0 ? -aligned : aligned;
}

// sum * 2^(maximum - 13), truncated to 13 fraction bits of its own exponent; zero is +0.
inline float TruncateSum(int32_t sum, int32_t maximum) {
  constexpr uint32_t kKeep = ~((1u << (23 - kFractionBits)) - 1);
  const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(sum)) & kKeep;
  const int64_t exponent = sum != 0 ? maximum - kFractionBits + 1023 : 0;
  const double scale = std::bit_cast<double>(exponent << 52);
  return static_cast<float>(std::bit_cast<float>(bits) * scale);
}

FP8GEMM_SIM_CLONES
void AddRowHopper(const int32_t* a_significand, const int32_t* a_exponent,
                  const AlignedTerms& b, uint32_t n, float* row) {
  constexpr uint32_t kWidth = 8;
  for (uint32_t first = 0; first < n; first += kWidth) {
    int32_t maximum[kWidth];
    int32_t sum[kWidth];
    uint32_t bits[kWidth];
    std::memcpy(bits, row + first, sizeof bits);
    for (uint32_t i = 0; i < kWidth; ++i) maximum[i] = FloatExponent(bits[i]);
    for (uint32_t k = 0; k < kDepth; ++k) {
      for (uint32_t i = 0; i < kWidth; ++i) {
        const int32_t product = a_significand[k] * b.significand[k][first + i];
        const int32_t exponent = a_exponent[k] + b.exponent[k][first + i];
        maximum[i] = std::max(maximum[i], product != 0 ? exponent : kZeroExponent);
      }
    }
    for (uint32_t i = 0; i < kWidth; ++i) sum[i] = AlignFloat(bits[i], maximum[i]);
    for (uint32_t k = 0; k < kDepth; ++k) {
      for (uint32_t i = 0; i < kWidth; ++i) {
        const int32_t product = a_significand[k] * b.significand[k][first + i];
        const int32_t exponent = a_exponent[k] + b.exponent[k][first + i];
        sum[i] += AlignProduct(product, std::min(exponent, maximum[i]), maximum[i]);
      }
    }
    for (uint32_t i = 0; i < kWidth; ++i) row[first + i] = TruncateSum(sum[i], maximum[i]);
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
  static AlignedTerms b;
  const Fp8Table& a_table = kTables[operands.a_type];
  const Fp8Table& b_table = kTables[operands.b_type];
  const uint32_t n = operands.n;
  Transpose(operands.b, n, b_table.significand, b.significand);
  Transpose(operands.b, n, b_table.exponent, b.exponent);
  bool b_special[kMaxMmaColumns];
  for (uint32_t i = 0; i < n; ++i) b_special[i] = HasSpecial(operands.b + i * kDepth, b_table);
  for (uint32_t row = 0; row < kMmaRows; ++row) {
    const uint8_t* const a = operands.a + row * kDepth;
    float* const out = tile + row * n;
    int32_t significand[kDepth];
    int32_t exponent[kDepth];
    float before[kMaxMmaColumns];
    for (uint32_t k = 0; k < kDepth; ++k) significand[k] = a_table.significand[a[k]];
    for (uint32_t k = 0; k < kDepth; ++k) exponent[k] = a_table.exponent[a[k]];
    std::copy_n(out, n, before);
    AddRowHopper(significand, exponent, b, n, out);
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
