// SPDX-License-Identifier: Apache-2.0
// Every kind of product on buffers at any address that suits their elements, as XLA's slices lie:
// what kernels read by pointer gives the same bits there, what TMA moves is refused by name.
//
// Usage: gemm_address_test SIMULATOR_LIBRARY
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks.h"
#include "gemm/gemm_plan.h"
#include "guarded_buffer.h"
#include "jit/headers.h"
#include "sim_library.h"

namespace fp8gemm {

// The simulator has its kernels built in.
std::span<const HeaderText> EmbeddedHeaders() { return {}; }

namespace {

struct Case {
  GemmProblem problem;
  std::vector<int32_t> group_data;
};

std::vector<Case> Cases() {
  std::vector<int32_t> ids(256, -1);
  std::fill_n(ids.begin(), 100, 0);
  std::fill_n(ids.begin() + 128, 128, 1);
  std::vector<Case> cases = {
      {{.kind = GemmKind::kDense, .m = 70}, {}},
      {{.kind = GemmKind::kDense, .scaling = Scaling::k1D1D, .m = 70}, {}},
      {{.kind = GemmKind::kRagged, .m = 130, .num_groups = 3}, {70, 0, 50}},
      {{.kind = GemmKind::kContiguous, .m = 256, .num_groups = 2}, ids},
      {{.kind = GemmKind::kMasked, .m = 40, .num_groups = 3}, {40, 0, 3}},
      {{.kind = GemmKind::kKGrouped, .scaling = Scaling::k1D1D, .m = 70, .num_groups = 3},
       {100, 0, 200}},
  };
  for (Case& c : cases) {
    c.problem.n = 136;
    c.problem.k = 384;
    c.problem.num_sms = 4;
    c.problem.accumulate = c.problem.scaling == Scaling::k1D1D;
    c.problem.d_type = c.problem.accumulate ? OutType::kF32 : OutType::kBF16;
  }
  return cases;
}

// The buffer named `shifted` lies `offset` bytes past a multiple of 64, the others at one. Returns
// the result.
std::vector<uint8_t> Product(const Case& c, const std::string& shifted = "", size_t offset = 0) {
  const GemmProblem& problem = c.problem;
  const auto make = [&](const char* name, int64_t count, uint32_t element_bytes) {
    Buffer buffer(count * element_bytes, shifted == name ? offset : 0);
    buffer.Fill(element_bytes);
    return buffer;
  };
  const uint32_t d_bytes = element_bytes(problem.d_type);
  const int64_t k_blocks = problem.k / kBlockK;
  const int64_t sfb_rows = problem.scaling == Scaling::k1D1D
                               ? problem.sfb_pitch()
                               : problem.b_rows() / problem.n * ceil_div<int64_t>(problem.n, 128);
  Buffer a = make("a", problem.a_rows() * problem.k, 1);
  Buffer b = make("b", problem.b_rows() * problem.k, 1);
  Buffer sfa = make("sfa", problem.sfa_pitch() * k_blocks, sizeof(float));
  Buffer sfb = make("sfb", sfb_rows * k_blocks, sizeof(float));
  Buffer group_data = make("group_data", c.group_data.size(), sizeof(int32_t));
  Buffer in = make("c", problem.d_rows() * problem.n, d_bytes);
  Buffer d = make("d", problem.d_rows() * problem.n, d_bytes);
  if (!c.group_data.empty()) {
    std::memcpy(group_data.data(), c.group_data.data(), c.group_data.size() * sizeof(int32_t));
  }
  GemmPlan plan(Backend::kSim, problem, "");
  plan.Run({.a = a.data(),
            .b = b.data(),
            .sfa = sfa.data(),
            .sfb = sfb.data(),
            .d = d.data(),
            .c = in.data(),
            .group_data = group_data.data()},
           nullptr);
  CHECK(d.IsIntact());
  return d.Values();
}

void TestByPointer(const Case& c, const char* name) {
  const std::vector<uint8_t> want = Product(c);
  for (const size_t offset : {4, 8, 12}) CHECK(Product(c, name, offset) == want);
}

void TestByTma(const Case& c, const std::string& name, size_t offset) {
  const std::string rule = "tensor map of " + name + ": base must be a multiple of 16 bytes";
  CHECK_CONTAINS(CHECK_THROWS(std::invalid_argument, Product(c, name, offset)), rule.c_str());
  CHECK(Product(c, name, 16) == Product(c));
}

void Test() {
  for (const Case& c : Cases()) {
    if (!c.group_data.empty()) TestByPointer(c, "group_data");
    if (c.problem.scaling == Scaling::k1D2D) {
      TestByPointer(c, "sfb");
    } else {
      TestByTma(c, "sfb", 4);
    }
    TestByTma(c, "a", 1);
    TestByTma(c, "b", 1);
    TestByTma(c, "sfa", 4);
    TestByTma(c, "d", element_bytes(c.problem.d_type));
    if (c.problem.accumulate) TestByTma(c, "c", element_bytes(c.problem.d_type));
  }
}

}  // namespace
}  // namespace fp8gemm

int main(int argc, char** argv) {
  TakeSimLibrary(argc, argv);
  fp8gemm::Test();
}
