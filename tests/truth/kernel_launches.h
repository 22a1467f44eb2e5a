// SPDX-License-Identifier: Apache-2.0
// One launch of each kernel in the simulator, on operands that are chosen freely: one cluster's
// rows, columns until the scales of B have met the tiles in every position, one K block per stage.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <vector>

#include "driver/driver.h"
#include "gemm/sm90_fp8_gemm.h"

namespace truth {

using namespace fp8gemm;

inline constexpr int kNumSms = 8;

/// Zeros at an address that TMA accepts.
template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count = 0)
      : data_(static_cast<T*>(std::aligned_alloc(128, (count * sizeof(T) / 128 + 1) * 128)),
              &std::free),
        count_(count) {
    std::fill_n(data_.get(), count, T{});
  }
  T* data() { return data_.get(); }
  T& operator[](size_t i) { return data_.get()[i]; }
  size_t size() const { return count_; }

 private:
  std::unique_ptr<T, void (*)(void*)> data_;
  size_t count_;
};

inline GemmProblem ProblemFor(const GemmConfig& config) {
  GemmProblem problem;
  problem.kind = config.kind;
  problem.scaling = config.scaling;
  problem.a_type = config.a_type;
  problem.b_type = config.b_type;
  problem.d_type = config.d_type;
  problem.accumulate = config.accumulate;
  problem.m = int64_t{config.block_m} * config.cluster_m;
  if (config.kind == GemmKind::kContiguous) problem.m = kContiguousAlignment;
  // A tile that ends before its last row is copied, not stored by TMA.
  if (config.kind == GemmKind::kRagged) problem.m = 2 * problem.m - 4;
  problem.n = std::lcm(int64_t{config.block_n}, int64_t{kScaleBlockN});
  problem.n = std::lcm(problem.n, int64_t{config.block_n} * config.cluster_n);
  problem.k = int64_t{config.num_stages} * config.split_k * kBlockK;
  return problem;
}

/// The operands, all zero, of a problem of one group.
struct Operands {
  Operands(const GemmProblem& problem, const GemmConfig& config)
      : k_blocks(problem.k / kBlockK),
        a(problem.m * problem.k),
        b(problem.n * problem.k),
        sfa(problem.sfa_pitch() * k_blocks),
        sfb(problem.sfb_pitch() * k_blocks),
        c(problem.m * problem.n * element_bytes(problem.d_type)),
        d(c.size()),
        group_data(problem.m) {
    buffers = {.a = a.data(),
               .b = b.data(),
               .sfa = sfa.data(),
               .sfb = sfb.data(),
               .d = d.data(),
               .c = config.accumulate ? c.data() : nullptr,
               .group_data = group_data.data()};
    const bool along_k = config.kind == GemmKind::kKGrouped;
    if (config.kind != GemmKind::kContiguous) group_data[0] = along_k ? problem.k : problem.m;
  }

  int64_t k_blocks;
  Buffer<uint8_t> a, b;
  Buffer<float> sfa, sfb;
  Buffer<uint8_t> c, d;
  Buffer<int32_t> group_data;
  GemmBuffers buffers;
};

/// Fails the program if the simulator refuses.
void LaunchKernel(const DriverApi& api, const GemmConfig& config, const GemmProblem& problem,
                  Operands& operands);

/// Where kernels are simulated as fast as can be, without a search for races.
const DriverApi& QuietSimulator(const char* library);

}  // namespace truth
