// SPDX-License-Identifier: Apache-2.0
// The simulator's arithmetic against models written another way: wgmma for every N, type and
// swizzle, in both ways of summing, and the conversions.
#include <algorithm>
#include <bit>
#include <cstdio>
#include <limits>
#include <random>

#include "sim/engine/mma_math.h"
#include "sim_harness.h"

namespace sim_test {
namespace {

namespace sim = fp8gemm::sim;

constexpr uint32_t kRows = 64;
constexpr uint32_t kSteps = 2;   // chained wgmma
constexpr uint32_t kDepth = 32;  // of one
constexpr uint32_t kMaxColumns = 256;
constexpr uint32_t kRowBytes = 128;  // of the operands in global memory

// ---- The kernel: two chained wgmma of any shape -------------------------------------------------

struct MmaParams {
  TensorMap a;  // (64, 128) fp8, box (64, span)
  TensorMap b;  // (n, 128) fp8, box (n, span)
  TensorMap d;  // (64, n) f32, box (64, n), no swizzle
  uint32_t n;
  uint32_t a_type;
  uint32_t b_type;
  uint32_t span_bytes;  // of the swizzle
};

uint64_t Descriptor(uint32_t address, uint32_t span_bytes) {
  const uint64_t swizzle = span_bytes == 128 ? 1 : span_bytes == 64 ? 2 : 3;
  return address >> 4 | static_cast<uint64_t>(span_bytes * 8 >> 4) << 32 | swizzle << 62;
}

// Operand step `k` lies at k * 32 within the span; a span of 32 bytes is loaded per step.
uint32_t StepOffset(uint32_t step, uint32_t rows, uint32_t span_bytes) {
  return step * kDepth / span_bytes * rows * span_bytes + step * kDepth % span_bytes;
}

void MmaKernel(const void* raw) {
  const MmaParams& params = *static_cast<const MmaParams*>(raw);
  const uint32_t smem = ptx::dynamic_smem();
  const uint32_t a = smem;
  const uint32_t b = smem + 16 * 1024;
  const uint32_t d = smem + 64 * 1024;
  const uint32_t bar = smem + 160 * 1024;
  const uint32_t n = params.n;
  const uint32_t span = params.span_bytes;
  const uint32_t warp = ptx::warp_idx();
  const uint32_t lane = ptx::lane_idx();
  if (warp == 0 && ptx::elect_sync()) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init_release_cluster();
    const uint32_t loads = std::max(1u, kSteps * kDepth / span);
    ptx::mbarrier_arrive_expect_tx(bar, loads * (kRows + n) * span);
    for (uint32_t i = 0; i < loads; ++i) {
      ptx::cp_async_bulk_tensor_2d_g2s(&params.a, bar, a + i * kRows * span, i * span, 0);
      ptx::cp_async_bulk_tensor_2d_g2s(&params.b, bar, b + i * n * span, i * span, 0);
    }
  }
  ptx::barrier_sync(0, 128);
  ptx::mbarrier_wait_parity(bar, 0);
  float fragment[kMaxColumns / 2];
  ptx::wgmma_fence();
  for (uint32_t step = 0; step < kSteps; ++step) {
    sim::Wgmma(fragment, n, params.a_type, params.b_type,
               Descriptor(a + StepOffset(step, kRows, span), span),
               Descriptor(b + StepOffset(step, n, span), span), step != 0);
  }
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  for (uint32_t i = 0; i < n / 2; i += 2) {
    const uint32_t row = 16 * warp + lane / 4 + 8 * (i / 2 % 2);
    const uint32_t column = 8 * (i / 4) + 2 * (lane % 4);
    ptx::st_shared_v2_f32(d + (row * n + column) * 4, fragment[i], fragment[i + 1]);
  }
  ptx::fence_proxy_async_shared_cta();
  ptx::barrier_sync(0, 128);
  if (ptx::thread_idx() != 0) return;
  ptx::cp_async_bulk_tensor_2d_s2g(&params.d, d, 0, 0);
  ptx::cp_async_bulk_commit_group();
  ptx::cp_async_bulk_wait_group_read<0>();
}

constexpr uint32_t kSmemBytes = 160 * 1024 + 8;
const sim::SimKernel kKernels[] = {
    {"mma", &MmaKernel, sizeof(MmaParams), 128, 1, kSmemBytes, 128, nullptr}};
const sim::KernelTable kTable(kKernels);

// ---- Models -------------------------------------------------------------------------------------

// 0: e4m3, 1: e5m2.
double DecodeFp8(uint32_t type, uint8_t code) {
  const int fraction_bits = type == 0 ? 3 : 2;
  const int bias = type == 0 ? 7 : 15;
  const int field = (code & 127) >> fraction_bits;
  const int fraction = code & ((1 << fraction_bits) - 1);
  const int significand = fraction + (field == 0 ? 0 : 1 << fraction_bits);
  double value = std::ldexp(significand, std::max(field, 1) - bias - fraction_bits);
  if (type == 0 && (code & 127) == 127) value = std::nan("");
  if (type == 1 && field == 31) value = fraction == 0 ? INFINITY : std::nan("");
  return code < 128 ? value : -value;
}

// Largest exponent that counts for alignment: subnormals count as the smallest normal.
int Fp8Exponent(uint32_t type, double value) {
  return std::max(std::ilogb(value), type == 0 ? -6 : -14);
}

float HopperSum(const std::vector<double>& products, const std::vector<int>& exponents,
                float start) {
  int top = std::numeric_limits<int>::min();
  if (start != 0) top = std::max(std::ilogb(start), -126);
  for (size_t i = 0; i < products.size(); ++i) {
    if (products[i] != 0) top = std::max(top, exponents[i]);
  }
  if (top == std::numeric_limits<int>::min()) return 0;
  double sum = std::trunc(std::ldexp(start, 13 - top));
  for (const double product : products) sum += std::trunc(std::ldexp(product, 13 - top));
  if (sum == 0) return 0;
  const int own = std::ilogb(sum);
  return static_cast<float>(std::ldexp(std::trunc(std::ldexp(sum, 13 - own)), own - 13 + top - 13));
}

class MmaCase {
 public:
  MmaCase(uint32_t n, uint32_t a_type, uint32_t b_type, uint32_t span_bytes, bool with_special)
      : a_(kRows * kRowBytes), b_(kMaxColumns * kRowBytes), d_(kRows * kMaxColumns) {
    std::mt19937 random(n * 16 + a_type * 2 + b_type);
    for (size_t i = 0; i < a_.size(); ++i) a_[i] = RandomCode(random, a_type, with_special);
    for (size_t i = 0; i < b_.size(); ++i) b_[i] = RandomCode(random, b_type, with_special);
    params_.n = n;
    params_.a_type = a_type;
    params_.b_type = b_type;
    params_.span_bytes = span_bytes;
    const auto swizzle = span_bytes == 128  ? fp8gemm::CU_TENSOR_MAP_SWIZZLE_128B
                         : span_bytes == 64 ? fp8gemm::CU_TENSOR_MAP_SWIZZLE_64B
                                            : fp8gemm::CU_TENSOR_MAP_SWIZZLE_32B;
    params_.a = Encode({fp8gemm::CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, a_.data(), kRows, kRowBytes,
                        kRows, span_bytes, swizzle});
    params_.b = Encode({fp8gemm::CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, b_.data(), n, kRowBytes, n,
                        span_bytes, swizzle});
    params_.d = Encode({fp8gemm::CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, d_.data(), kRows, n, kRows, n,
                        fp8gemm::CU_TENSOR_MAP_SWIZZLE_NONE});
  }

  void Check(sim::Numerics numerics) {
    sim::SimOptions options;
    options.numerics = numerics;
    Fp8GemmSimSetOptions(&options);
    const fp8gemm::CUresult result = Launch("mma", {1, 128, 1, kSmemBytes}, &params_);
    if (result != fp8gemm::CUDA_SUCCESS) {
      checks::Fail(__FILE__, __LINE__, Fp8GemmSimDriver()->last_report());
    }
    for (uint32_t row = 0; row < kRows; ++row) {
      for (uint32_t column = 0; column < params_.n; ++column) {
        const float wanted = Expected(row, column, numerics);
        const float got = d_[row * params_.n + column];
        if (got == wanted || (std::isnan(got) && std::isnan(wanted))) continue;
        char text[200];
        std::snprintf(text, sizeof text,
                      "n %u types %u %u span %u numerics %d (%u, %u): %a, not %a", params_.n,
                      params_.a_type, params_.b_type, params_.span_bytes, numerics, row, column,
                      got, wanted);
        checks::Fail(__FILE__, __LINE__, text);
      }
    }
  }

 private:
  static uint8_t RandomCode(std::mt19937& random, uint32_t type, bool with_special) {
    for (;;) {
      const uint8_t code = static_cast<uint8_t>(random());
      if (with_special || std::isfinite(DecodeFp8(type, code))) return code;
    }
  }

  float Expected(uint32_t row, uint32_t column, sim::Numerics numerics) {
    float sum = 0;
    for (uint32_t step = 0; step < kSteps; ++step) {
      std::vector<double> products(kDepth);
      std::vector<int> exponents(kDepth);
      bool is_finite = std::isfinite(sum);
      for (uint32_t k = 0; k < kDepth; ++k) {
        const double a = DecodeFp8(params_.a_type, a_[row * kRowBytes + step * kDepth + k]);
        const double b = DecodeFp8(params_.b_type, b_[column * kRowBytes + step * kDepth + k]);
        products[k] = a * b;
        is_finite &= std::isfinite(a) && std::isfinite(b);
        if (products[k] == 0 || !is_finite) continue;
        exponents[k] = Fp8Exponent(params_.a_type, a) + Fp8Exponent(params_.b_type, b);
      }
      if (is_finite && numerics == sim::kNumericsHopper) {
        sum = HopperSum(products, exponents, sum);
        continue;
      }
      for (const double product : products) sum += static_cast<float>(product);
    }
    return sum;
  }

  Buffer<uint8_t> a_;
  Buffer<uint8_t> b_;
  Buffer<float> d_;
  MmaParams params_;
};

void TestMma() {
  for (uint32_t types = 0; types < 4; ++types) {
    for (const uint32_t span : {32u, 64u, 128u}) {
      for (const bool with_special : {false, true}) {
        MmaCase test(48, types / 2, types % 2, span, with_special);
        test.Check(sim::kNumericsExact);
        test.Check(sim::kNumericsHopper);
      }
    }
  }
  for (uint32_t n = 8; n <= kMaxColumns; n += 8) {
    MmaCase test(n, 0, n / 8 % 2, 128, false);
    test.Check(sim::kNumericsExact);
    test.Check(sim::kNumericsHopper);
  }
}

// Accumulators that no chain of products reaches: tiny, huge, alone or not.
void TestHopperStart() {
  constexpr uint32_t kColumns = 8;
  std::mt19937 random(1);
  for (uint32_t round = 0; round < 200; ++round) {
    std::vector<uint8_t> a(kRows * kDepth);
    std::vector<uint8_t> b(kColumns * kDepth);
    std::vector<float> tile(kRows * kColumns);
    for (uint8_t& code : a) code = random() % (round % 3 == 0 ? 1 : 120);
    for (uint8_t& code : b) code = random() % 120;
    for (float& value : tile) {
      do {
        value = std::bit_cast<float>(static_cast<uint32_t>(random()));
      } while (!std::isfinite(value) || std::fabs(value) > 0x1p100f);
    }
    const std::vector<float> start = tile;
    const sim::MmaOperands operands = {a.data(), b.data(), kColumns, 0, 1};
    sim::Multiply(operands, sim::kNumericsHopper, true, tile.data());
    for (uint32_t i = 0; i < tile.size(); ++i) {
      std::vector<double> products(kDepth);
      std::vector<int> exponents(kDepth);
      for (uint32_t k = 0; k < kDepth; ++k) {
        const double x = DecodeFp8(0, a[i / kColumns * kDepth + k]);
        const double y = DecodeFp8(1, b[i % kColumns * kDepth + k]);
        products[k] = x * y;
        if (products[k] != 0) exponents[k] = Fp8Exponent(0, x) + Fp8Exponent(1, y);
      }
      CHECK(tile[i] == HopperSum(products, exponents, start[i]));
    }
  }
}

// ---- Conversions --------------------------------------------------------------------------------

// To the nearest multiple of the spacing at |value|, ties to even, by the C library.
double RoundTo(double value, int fraction_bits, int min_exponent) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), min_exponent);
  return std::ldexp(std::nearbyint(std::ldexp(value, fraction_bits - exponent)),
                    exponent - fraction_bits);
}

void CheckConversions(uint32_t bits) {
  const float value = std::bit_cast<float>(bits);
  const uint32_t bf16 = sim::PackBf16x2(0.0f, value);
  const uint32_t f16 = sim::PackF16x2(0.0f, value);
  CHECK(bf16 <= 0xffff && f16 <= 0xffff);
  CHECK(sim::PackBf16x2(value, 0.0f) == bf16 << 16 && sim::PackF16x2(value, 0.0f) == f16 << 16);
  if (std::isnan(value)) {
    CHECK(bf16 == 0x7fff && f16 == 0x7fff);
    return;
  }
  const float bf16_value = std::bit_cast<float>(bf16 << 16);
  double wanted = RoundTo(value, 7, -126);
  if (std::fabs(wanted) >= 0x1p128) wanted = std::copysign(INFINITY, wanted);
  CHECK(bf16_value == wanted && std::signbit(bf16_value) == std::signbit(value));
  const float f16_value = sim::F16ToF32(f16);
  wanted = RoundTo(value, 10, -14);
  if (std::fabs(wanted) >= 65536) wanted = std::copysign(INFINITY, wanted);
  CHECK(f16_value == wanted && std::signbit(f16_value) == std::signbit(value));
}

void TestConversions() {
  for (uint32_t half = 0; half < 0x10000; ++half) {
    const float value = sim::F16ToF32(half);
    if (std::isnan(value)) continue;
    CHECK(sim::PackF16x2(0.0f, value) == half);
    // Both neighbours of the midpoints to the next number, and the midpoints themselves.
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    for (uint32_t shift = 0; shift < 13; ++shift) {
      for (const uint32_t nudge : {0u, 1u, 0xffffffffu}) {
        CheckConversions(bits + (1u << shift) + nudge);
      }
    }
  }
  for (uint32_t bits = 0; bits < 0xffff0000u; bits += 0x7ffd) CheckConversions(bits);
  for (const uint32_t bits : {0x7f800000u, 0xff800000u, 0x7f7fffffu, 0x477fefffu, 0x477ff000u,
                              0x33000000u, 0x33000001u, 0x7fc00000u, 0xffffffffu}) {
    CheckConversions(bits);
  }
}

}  // namespace
}  // namespace sim_test

int main() {
  sim_test::TestMma();
  sim_test::TestHopperStart();
  sim_test::TestConversions();
  std::puts("ok");
  return 0;
}
