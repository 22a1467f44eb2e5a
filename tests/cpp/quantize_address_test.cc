// SPDX-License-Identifier: Apache-2.0
// Every quantizer on buffers at any address that suits their elements, as XLA's slices lie: the
// same bits as on aligned ones, nothing written beside them, and no access between multiples of its
// size, at which the simulator stops as a GPU does.
//
// Usage: quantize_address_test SIMULATOR_LIBRARY
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "checks.h"
#include "guarded_buffer.h"
#include "jit/headers.h"
#include "quantize/quantize_plan.h"
#include "sim_library.h"

namespace fp8gemm {

// The simulator has its kernels built in.
std::span<const HeaderText> EmbeddedHeaders() { return {}; }

namespace {

constexpr std::array<int32_t, 3> kGroupSizes = {70, 0, 60};

template <size_t kNumDims>
size_t Size(const std::array<int64_t, kNumDims>& extents) {
  size_t size = 1;
  for (const int64_t extent : extents) size *= static_cast<size_t>(extent);
  return size;
}

// How many bytes buffers lie past a multiple of 64. Those of `words`, which are arrays of float32
// and int32, may lie at any multiple of four.
struct Offsets {
  size_t x = 0;
  size_t values = 0;
  size_t words = 0;
};

template <typename T>
T* As(Buffer& buffer) {
  return reinterpret_cast<T*>(buffer.data());
}

std::vector<uint8_t> Quantized(const QuantizeProblem& problem, Offsets offsets) {
  const uint32_t bytes = element_bytes(problem.config.x_type);
  const size_t x_bytes = Size(problem.x_extents()) * bytes;
  const auto words = [&](size_t count) { return Buffer(count * 4, offsets.words); };
  Buffer x(x_bytes, offsets.x);
  Buffer up(x_bytes, offsets.x);
  Buffer row_factors = words(Size(problem.row_factors_extents()));
  Buffer column_factors = words(Size(problem.column_factors_extents()));
  Buffer x_scales = words(Size(problem.x_scales_extents()));
  x.Fill(bytes);
  up.Fill(bytes);
  row_factors.Fill(sizeof(float));
  column_factors.Fill(sizeof(float));
  x_scales.Fill(sizeof(float));
  Buffer group_sizes = words(kGroupSizes.size());
  std::memcpy(group_sizes.data(), kGroupSizes.data(), sizeof kGroupSizes);
  const bool has_rows = problem.config.has_rows();
  Buffer values(Size(problem.values_extents()), offsets.values);
  Buffer scales = words(Size(problem.scales_extents()));
  Buffer row_values(has_rows ? Size(problem.row_values_extents()) : 0, offsets.values);
  Buffer row_scales = words(has_rows ? Size(problem.row_scales_extents()) : 0);
  QuantizePlan plan(Backend::kSim, problem);
  plan.Run({.x = x.data(),
            .up = up.data(),
            .row_factors = As<float>(row_factors),
            .column_factors = As<float>(column_factors),
            .x_scales = As<float>(x_scales),
            .group_sizes = As<int32_t>(group_sizes),
            .values = values.data(),
            .scales = As<float>(scales),
            .row_values = row_values.data(),
            .row_scales = As<float>(row_scales)},
           nullptr);
  CHECK(x.IsIntact());
  std::vector<uint8_t> written;
  for (const Buffer* buffer : {&values, &scales, &row_values, &row_scales}) {
    CHECK(buffer->IsIntact());
    const std::vector<uint8_t> some = buffer->Values();
    written.insert(written.end(), some.begin(), some.end());
  }
  return written;
}

void Test() {
  int quantizers = 0;
  for_each_quantizer([&](const QuantizeConfig& config) {
    ++quantizers;
    const uint32_t bytes = element_bytes(config.x_type);
    // Rows of whole vectors, and rows that end within one.
    for (const int64_t columns : {160, 150}) {
      const QuantizeProblem problem{
          .config = config,
          .batches = 1,
          .rows = 144,
          .columns = columns,
          .num_groups = config.is_grouped() || config.is_rows() ? int64_t{kGroupSizes.size()} : 0};
      const std::vector<uint8_t> want = Quantized(problem, {});
      for (const size_t elements : {1, 2, 3}) {
        CHECK(Quantized(problem, {.x = elements * bytes}) == want);
        CHECK(Quantized(problem, {.values = elements}) == want);
        CHECK(Quantized(problem, {.words = 4 * elements}) == want);
      }
      CHECK(Quantized(problem, {.x = 4 * bytes, .values = 4, .words = 4}) == want);
    }
  });
  CHECK(quantizers > 100);
}

}  // namespace
}  // namespace fp8gemm

int main(int argc, char** argv) {
  TakeSimLibrary(argc, argv);
  fp8gemm::Test();
}
