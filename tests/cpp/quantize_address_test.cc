// SPDX-License-Identifier: Apache-2.0
// Every quantizer on buffers at any address that suits their elements, as XLA's slices lie: the
// same bits as on aligned ones, nothing written beside them, and no access between multiples of its
// size, at which the simulator stops as a GPU does.
//
// Usage: quantize_address_test SIMULATOR_LIBRARY
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "checks.h"
#include "jit/headers.h"
#include "quantize/quantize_plan.h"

namespace fp8gemm {

// The simulator has its kernels built in.
std::span<const HeaderText> EmbeddedHeaders() { return {}; }

namespace {

constexpr size_t kGuardBytes = 64;
constexpr uint8_t kGuard = 0xA5;

template <size_t kNumDims>
size_t Size(const std::array<int64_t, kNumDims>& extents) {
  size_t size = 1;
  for (const int64_t extent : extents) size *= static_cast<size_t>(extent);
  return size;
}

// Bytes `offset` past a multiple of 64, between guards.
class Buffer {
 public:
  Buffer(size_t bytes, size_t offset) : bytes_(bytes), memory_(bytes + 3 * kGuardBytes, kGuard) {
    const auto start = reinterpret_cast<uintptr_t>(memory_.data()) + kGuardBytes;
    data_ = reinterpret_cast<uint8_t*>((start + 63) / 64 * 64 + offset);
  }
  uint8_t* data() { return data_; }
  std::vector<uint8_t> Values() const { return {data_, data_ + bytes_}; }
  bool IsIntact() const {
    for (const uint8_t& byte : memory_) {
      if ((&byte < data_ || &byte >= data_ + bytes_) && byte != kGuard) return false;
    }
    return true;
  }

 private:
  size_t bytes_;
  std::vector<uint8_t> memory_;
  uint8_t* data_;
};

// Numbers between -2 and 2 of any type: the exponent's top bits are cleared.
void Fill(Buffer& x, size_t bytes, uint32_t element_bytes) {
  std::mt19937 random(bytes);
  for (size_t i = 0; i < bytes; ++i) {
    x.data()[i] = static_cast<uint8_t>(random());
    if (i % element_bytes == element_bytes - 1) x.data()[i] &= 0xBF;
  }
}

std::vector<uint8_t> Quantized(const QuantizeProblem& problem, size_t x_offset,
                               size_t values_offset) {
  const uint32_t bytes = element_bytes(problem.config.x_type);
  const size_t x_bytes = Size(problem.x_extents()) * bytes;
  Buffer x(x_bytes, x_offset);
  Fill(x, x_bytes, bytes);
  Buffer up(x_bytes, x_offset);
  Fill(up, x_bytes, bytes);
  std::vector<float> row_factors(Size(problem.row_factors_extents()), 0.75f);
  const size_t factors_bytes = Size(problem.column_factors_extents()) * sizeof(float);
  // At multiples of four bytes, as x_offset may not be.
  Buffer column_factors(factors_bytes, x_offset / sizeof(float) * sizeof(float));
  Fill(column_factors, factors_bytes, sizeof(float));
  std::vector<float> x_scales(Size(problem.x_scales_extents()), 0.5f);
  int32_t group_sizes[] = {70, 0, 60};
  const size_t values_bytes = Size(problem.values_extents());
  Buffer values(values_bytes, values_offset);
  std::vector<float> scales(Size(problem.scales_extents()));
  const bool has_rows = problem.config.has_rows();
  const size_t row_bytes = has_rows ? Size(problem.row_values_extents()) : 0;
  Buffer row_values(row_bytes, values_offset);
  std::vector<float> row_scales(has_rows ? Size(problem.row_scales_extents()) : 0);
  QuantizePlan plan(Backend::kSim, problem);
  plan.Run({.x = x.data(),
            .up = up.data(),
            .row_factors = row_factors.data(),
            .column_factors = column_factors.data(),
            .x_scales = x_scales.data(),
            .group_sizes = group_sizes,
            .values = values.data(),
            .scales = scales.data(),
            .row_values = row_values.data(),
            .row_scales = row_scales.data()},
           nullptr);
  CHECK(x.IsIntact() && values.IsIntact() && row_values.IsIntact());
  std::vector<uint8_t> written = values.Values();
  const std::vector<uint8_t> rows = row_values.Values();
  written.insert(written.end(), rows.begin(), rows.end());
  return written;
}

void Test() {
  int quantizers = 0;
  for_each_quantizer([&](const QuantizeConfig& config) {
    ++quantizers;
    const uint32_t bytes = element_bytes(config.x_type);
    // Rows of whole vectors, and rows that end within one.
    for (const int64_t columns : {160, 150}) {
      const QuantizeProblem problem{.config = config,
                                    .batches = 1,
                                    .rows = 144,
                                    .columns = columns,
                                    .num_groups = config.is_grouped() || config.is_rows() ? 3 : 0};
      const std::vector<uint8_t> want = Quantized(problem, 0, 0);
      for (const size_t elements : {1, 2, 3}) {
        CHECK(Quantized(problem, elements * bytes, 0) == want);
        CHECK(Quantized(problem, 0, elements) == want);
      }
      CHECK(Quantized(problem, 4 * bytes, 4) == want);
    }
  });
  CHECK(quantizers > 100);
}

}  // namespace
}  // namespace fp8gemm

int main(int argc, char** argv) {
  if (argc != 2) checks::Fail("usage", 0, "needs the simulator's library");
  fp8gemm::SetSimLibraryPath(argv[1]);
  fp8gemm::Test();
}
