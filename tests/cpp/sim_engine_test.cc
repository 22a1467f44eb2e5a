// SPDX-License-Identifier: Apache-2.0
// Every planted fault is reported, whatever the schedule, and the correct kernels never are.
#include <algorithm>
#include <cstdio>

#include "sim_harness.h"

namespace sim_test {
namespace {

using fp8gemm::sim::KernelTable;
using fp8gemm::sim::SimKernel;
using fp8gemm::sim::SimOptions;

struct Case {
  const char* key;
  const char* report;  // part of the report; "wrong" for a wrong result, "" for a clean run
  uint32_t cluster = 1;
};

const char* DescribeSmem(uint32_t offset) {
  using Layout = Pipeline<Fault::kNone, 1>;
  if (offset >= Layout::kEmpty) return "empty";
  if (offset >= Layout::kFull) return "full";
  return offset >= Layout::kScales ? "scales" : offset >= Layout::kA ? "operands" : "d";
}

template <Fault kFault, uint32_t kCluster = 1>
SimKernel MakeKernel(const char* key) {
  using Kernel = Pipeline<kFault, kCluster>;
  return {key,
          &PipelineEntry<kFault, kCluster>,
          sizeof(Params),
          Kernel::kThreads,
          kCluster,
          Kernel::kSmemBytes,
          kLaunchRegisters,
          &DescribeSmem};
}

#define SIM_TEST_KERNEL(fault) MakeKernel<Fault::fault>(#fault)
#define SIM_TEST_CLUSTER_KERNEL(fault) MakeKernel<Fault::fault, 2>(#fault ".cluster")

const SimKernel kKernels[] = {
    SIM_TEST_KERNEL(kNone),
    SIM_TEST_KERNEL(kConsumerSkipsFull),
    SIM_TEST_KERNEL(kOneLaneWaitsFull),
    SIM_TEST_KERNEL(kLaneLapped),
    SIM_TEST_KERNEL(kReleaseBeforeWait),
    SIM_TEST_KERNEL(kProducerParity),
    SIM_TEST_KERNEL(kProducerSkipsEmpty),
    SIM_TEST_KERNEL(kExpectTooFew),
    SIM_TEST_KERNEL(kEmptyCountTooHigh),
    SIM_TEST_KERNEL(kArriveTwice),
    SIM_TEST_KERNEL(kNoInitFence),
    SIM_TEST_KERNEL(kNoInitBarrier),
    SIM_TEST_KERNEL(kUninitializedBarrier),
    SIM_TEST_KERNEL(kReinitializedBarrier),
    SIM_TEST_KERNEL(kScaleReadAfterRelease),
    SIM_TEST_KERNEL(kNoWgmmaFence),
    SIM_TEST_KERNEL(kNoWgmmaWait),
    SIM_TEST_KERNEL(kReadBeforeWait),
    SIM_TEST_KERNEL(kTouchInFlight),
    SIM_TEST_KERNEL(kDescriptorRow),
    SIM_TEST_KERNEL(kWarpsDiffer),
    SIM_TEST_KERNEL(kNoProxyFence),
    SIM_TEST_KERNEL(kProxyFenceInOneLane),
    SIM_TEST_KERNEL(kNoStoreBarrier),
    SIM_TEST_KERNEL(kNoStoreWait),
    SIM_TEST_KERNEL(kNoBarrierAfterStoreWait),
    SIM_TEST_KERNEL(kNoFinalStoreWait),
    SIM_TEST_KERNEL(kNoCommit),
    SIM_TEST_KERNEL(kDivergentWgmma),
    SIM_TEST_KERNEL(kDivergentStmatrix),
    SIM_TEST_KERNEL(kDivergentBarrier),
    SIM_TEST_KERNEL(kElectInDivergentCode),
    SIM_TEST_KERNEL(kLaneExchange),
    SIM_TEST_KERNEL(kSharedBarrier),
    SIM_TEST_KERNEL(kTooManyRegisters),
    SIM_TEST_KERNEL(kRegistersDiffer),
    SIM_TEST_KERNEL(kIncreaseBelow),
    SIM_TEST_KERNEL(kMisalignedTile),
    SIM_TEST_KERNEL(kMisalignedLoad),
    SIM_TEST_KERNEL(kBoxFromOddScale),
    SIM_TEST_KERNEL(kBoxToOddColumn),
    SIM_TEST_KERNEL(kBeyondSmem),
    SIM_TEST_KERNEL(kStoreOverBarrier),
    SIM_TEST_KERNEL(kGlobalOutOfRange),
    SIM_TEST_KERNEL(kNoGridWait),
    SIM_TEST_KERNEL(kMapNotEncoded),
    SIM_TEST_CLUSTER_KERNEL(kNone),
    SIM_TEST_CLUSTER_KERNEL(kNoInitFence),
    SIM_TEST_CLUSTER_KERNEL(kNoFinalClusterSync),
    SIM_TEST_CLUSTER_KERNEL(kReleaseOnlyOwn),
    SIM_TEST_CLUSTER_KERNEL(kMulticastOffset),
    SIM_TEST_CLUSTER_KERNEL(kArriveTwiceAtCluster),
    SIM_TEST_CLUSTER_KERNEL(kWaitWithoutArrive),
    SIM_TEST_CLUSTER_KERNEL(kMulticastMask),
};
const KernelTable kTable(kKernels);

const Case kCases[] = {
    {"kNone", ""},
    {"kConsumerSkipsFull", "TMA load"},
    {"kOneLaneWaitsFull", "(scales)"},
    {"kLaneLapped", "lane 7 of cta 0 for the phase before it first"},
    {"kReleaseBeforeWait", "(operands)"},
    {"kProducerParity", "(empty) for parity 0: phase 0 (parity 0), pending arrivals 4 of 4"},
    {"kProducerSkipsEmpty", "TMA load"},
    {"kExpectTooFew", "pending arrivals 0 of 1, tx-count -16"},
    {"kEmptyCountTooHigh", "(empty) for parity 0: phase 0 (parity 0), pending arrivals 1 of 5"},
    {"kArriveTwice", "cta 0"},
    {"kNoInitFence", "was not followed by fence.mbarrier_init"},
    {"kNoInitBarrier", "mbarrier.init"},
    {"kUninitializedBarrier", "where no mbarrier.init has been executed yet"},
    {"kReinitializedBarrier", "which is an mbarrier already"},
    {"kScaleReadAfterRelease", "(scales)"},
    {"kNoWgmmaFence", "wgmma without a wgmma.fence"},
    {"kNoWgmmaWait", "wgmma"},
    {"kReadBeforeWait", "wgmma"},
    {"kTouchInFlight", "accumulator registers were written while a wgmma"},
    {"kDescriptorRow", "not in the first row of a 128B swizzle atom"},
    {"kWarpsDiffer", "wgmma operands differ between the warps"},
    {"kNoProxyFence", "without a later fence.proxy.async"},
    {"kProxyFenceInOneLane", "without a later fence.proxy.async"},
    {"kNoStoreBarrier", "TMA store"},
    {"kNoStoreWait", "TMA store"},
    {"kNoBarrierAfterStoreWait", "TMA store"},
    {"kNoFinalStoreWait", "has covered"},
    {"kNoCommit", "TMA store"},
    {"kDivergentWgmma", "in divergent code"},
    {"kDivergentStmatrix", "in divergent code"},
    {"kDivergentBarrier", "in divergent code"},
    {"kElectInDivergentCode", "in divergent code"},
    {"kLaneExchange", "of the same warp"},
    {"kSharedBarrier", "barrier.sync 1 is not ordered after its last use"},
    {"kTooManyRegisters", "setmaxnreg.inc 240: the warp needs 3584 more registers"},
    {"kRegistersDiffer", "another warp of the warpgroup executed setmaxnreg"},
    {"kIncreaseBelow", "setmaxnreg.inc 64, but the warp has 128 registers"},
    {"kMisalignedTile", "not aligned to 1024 bytes"},
    {"kMisalignedLoad", "(scales): not aligned to 4 bytes"},
    {"kBoxFromOddScale", "multiple of 16 bytes, or a GPU traps (illegal instruction); got 2"},
    {"kBoxToOddColumn", "multiple of 16 bytes, or a GPU traps (illegal instruction); got -4"},
    {"kBeyondSmem", "outside the 41504 bytes of dynamic shared memory"},
    {"kStoreOverBarrier", "(full) overwrites an mbarrier"},
    {"kGlobalOutOfRange", "in no registered range"},
    {"kNoGridWait", "not ordered after griddepcontrol.wait"},
    {"kMapNotEncoded", "was not encoded by cuTensorMapEncodeTiled"},
    {"kNone.cluster", "", 2},
    {"kNoInitFence.cluster", "was not followed by fence.mbarrier_init", 2},
    {"kNoFinalClusterSync.cluster", "exit", 2},
    {"kReleaseOnlyOwn.cluster", "(empty)", 2},
    {"kMulticastOffset.cluster", "TMA load", 2},
    {"kArriveTwiceAtCluster.cluster", "barrier.cluster.arrive twice", 2},
    {"kWaitWithoutArrive.cluster", "barrier.cluster.wait without an arrive", 2},
    {"kMulticastMask.cluster", "mask 0x4 in a cluster of 2", 2},
};

// What one run found: "" if nothing.
std::string Run(const Case& test, const SimOptions& options, Problem& problem) {
  using Kernel = Pipeline<Fault::kNone, 1>;
  Fp8GemmSimSetOptions(&options);
  problem.ClearResult();
  const Geometry geometry = {2, Kernel::kThreads, test.cluster, Kernel::kSmemBytes, true};
  const fp8gemm::CUresult result = Launch(test.key, geometry, problem.params());
  if (result == fp8gemm::CUDA_SUCCESS) return problem.IsCorrect() ? "" : "wrong";
  CHECK(result == fp8gemm::CUDA_ERROR_LAUNCH_FAILED);
  return Fp8GemmSimDriver()->last_report();
}

bool TestCase(const Case& test) {
  Problem problem(test.cluster);
  problem.RegisterRanges();
  int num_runs = 0;
  int num_seen = 0;
  std::string other;
  for (int32_t timing = 0; timing < 3; ++timing) {
    for (int32_t scheduler = 0; scheduler < 3; ++scheduler) {
      for (uint64_t seed = 0; seed < 3; ++seed) {
        SimOptions options;
        options.seed = seed;
        options.timing = timing;
        options.scheduler = scheduler;
        const std::string found = Run(test, options, problem);
        const bool is_expected =
            *test.report == '\0' ? found.empty() : found.find(test.report) != std::string::npos;
        ++num_runs;
        num_seen += is_expected;
        if (!is_expected) other = found;
      }
    }
  }
  const bool is_ok = num_seen == num_runs;
  std::printf("%s: %s %d of %d\n", is_ok ? "ok" : "FAILED", test.key, num_seen, num_runs);
  if (!is_ok) std::printf("wanted '%s', got %s\n", test.report, other.c_str());
  return is_ok;
}

// The correct kernel is right in every mode that changes what is simulated.
void TestModes() {
  Problem problem(1);
  problem.RegisterRanges();
  for (int32_t shadow = 0; shadow < 3; ++shadow) {
    for (int32_t numerics = 0; numerics < 2; ++numerics) {
      SimOptions options;
      options.shadow = shadow;
      options.numerics = numerics;
      CHECK(Run(kCases[0], options, problem) == "");
    }
  }
}

// An interrupted launch ends, says so, and leaves nothing behind that harms the next one.
void TestInterrupts() {
  static uint64_t num_asked = 0, last = 0;
  Problem problem(1);
  problem.RegisterRanges();
  const auto watch = [] { return uint64_t{7}; };
  Fp8GemmSimDriver()->set_interrupts(watch, [](uint64_t mark) {
    CHECK(mark == 7);
    return ++num_asked == last;
  });
  CHECK(Run(kCases[0], {}, problem) == "");
  const uint64_t num_asked_by_one = num_asked;
  CHECK(num_asked_by_one >= 4);
  for (uint64_t i = 1; i <= num_asked_by_one; ++i) {
    last = num_asked + i;
    CHECK_CONTAINS(Run(kCases[0], {}, problem), "interrupted by Ctrl-C");
    CHECK(num_asked == last);
    CHECK(Run(kCases[0], {}, problem) == "");
  }
}

}  // namespace
}  // namespace sim_test

// Without arguments tests everything, with arguments the named cases.
int main(int argc, char** argv) {
  bool is_ok = true;
  for (const sim_test::Case& test : sim_test::kCases) {
    const bool is_named = std::any_of(
        argv + 1, argv + argc, [&](const char* name) { return std::string(name) == test.key; });
    if (argc == 1 || is_named) is_ok &= sim_test::TestCase(test);
  }
  if (argc == 1) sim_test::TestModes();
  if (argc == 1) sim_test::TestInterrupts();
  return is_ok ? 0 : 1;
}
