// SPDX-License-Identifier: Apache-2.0
// Each kernel of sim_rule_kernels.h is clean as it is, and reported once its rule is broken.
#include <cstdio>

#include "sim_harness.h"
#include "sim_rule_kernels.h"

namespace sim_test {
namespace {

using fp8gemm::sim::KernelTable;
using fp8gemm::sim::SimKernel;
using fp8gemm::sim::SimOptions;

struct Rule {
  const char* name;
  const char* report;  // part of what is said of the broken kernel, whatever the schedule
  uint32_t cluster;
  SimKernel kept;
  SimKernel broken;
};

template <void (*kKernel)(const Params&)>
void Entry(const void* params) {
  kKernel(*static_cast<const Params*>(params));
}

template <void (*kKernel)(const Params&)>
constexpr SimKernel MakeKernel(const char* key, uint32_t cluster) {
  return {key,     &Entry<kKernel>,   sizeof(Params),   rules::kThreads,
          cluster, rules::kSmemBytes, kLaunchRegisters, nullptr};
}

#define SIM_TEST_RULE(name, cluster, report)                                        \
  {#name, report, cluster, MakeKernel<&rules::name<false>>(#name ".kept", cluster), \
   MakeKernel<&rules::name<true>>(#name ".broken", cluster)}

const Rule kRules[] = {
    SIM_TEST_RULE(MbarrierIsRead, 1, "reads an mbarrier"),
    SIM_TEST_RULE(PhaseIsNotSeen, 1, "in phase 1, but no wait has seen phase 0 complete yet"),
    SIM_TEST_RULE(CountOfZero, 1, "with count 0: must be 1 to 2^20 - 1"),
    SIM_TEST_RULE(CountTooHigh, 1, "with count 1048576: must be 1 to 2^20 - 1"),
    SIM_TEST_RULE(MisalignedMbarrier, 1, "not aligned to 8 bytes"),
    SIM_TEST_RULE(TooManyMbarriers, 1, "more than 160 mbarriers"),
    SIM_TEST_RULE(ExpectTooMany, 1, "tx-count 1048576 is beyond the range of 2^20 - 1"),
    SIM_TEST_RULE(TooManyArrivals, 1, "more arrivals in one phase than its count of 1"),
    SIM_TEST_RULE(ParityOfTwo, 1, "with parity 2"),
    SIM_TEST_RULE(ArriveOutsideCluster, 2, "mapa to cta 2 of a cluster of 2"),
    SIM_TEST_RULE(StoreOutsideCluster, 2, "mapa to cta 2 of a cluster of 2"),
    SIM_TEST_RULE(StoreBeforeStart, 2, "nothing orders it after that cta has started"),
    SIM_TEST_RULE(RelaxedArrivalOfData, 2, "race"),
    SIM_TEST_RULE(RelaxedArrivalOfBarrier, 2, "mbarrier.init"),
    SIM_TEST_RULE(StoreIsNotAwaited, 2, "no thread has waited for the last TMA load or st.async"),
    SIM_TEST_RULE(ReadBeforeWait, 2, "st.async"),
    SIM_TEST_RULE(StoreAlone, 1, "st.async in a cluster of one"),
    SIM_TEST_RULE(WaitAtCtaScope, 2, "acquires at cta scope"),
    SIM_TEST_RULE(ExitBeforeClusterWait, 2, "exits between barrier.cluster.arrive and"),
    SIM_TEST_RULE(BarrierSixteen, 1, "barrier.sync 16: there are 16 barriers"),
    SIM_TEST_RULE(BarrierOfHalfWarp, 1, "barrier.sync 1 for 112 threads"),
    SIM_TEST_RULE(BarrierCountsDiffer, 1, "but the warps that wait there expect"),
    SIM_TEST_RULE(LanesExitEarly, 1, "bar.warp.sync"),
    SIM_TEST_RULE(ShuffleFromLane32, 1, "shfl.sync.idx from lane 32"),
    SIM_TEST_RULE(ShuffleOperandsDiffer, 1, "with different operands in the lanes of a warp"),
    SIM_TEST_RULE(ElectedLaneIsZero, 1, "has covered 0 of its 1 groups"),
    SIM_TEST_RULE(RegistersUnsynchronized, 1, "setmaxnreg again, but not ordered after"),
    SIM_TEST_RULE(RegistersOfThreeWarps, 1, "warp 0 has executed setmaxnreg 1 times, warp 2 0"),
    SIM_TEST_RULE(MisalignedStmatrix, 1, "not aligned to 16 bytes"),
    SIM_TEST_RULE(MisalignedVector, 1, "not aligned to 16 bytes"),
    SIM_TEST_RULE(MisalignedGlobal, 1, "not aligned to 2 bytes"),
    SIM_TEST_RULE(ReadOnlyThenWritten, 1, "which this launch reads by ld.global.nc"),
    SIM_TEST_RULE(WrittenThenReadOnly, 1, "which this launch writes"),
    SIM_TEST_RULE(MapIsCopied, 1, "is not in the kernel's parameters"),
    SIM_TEST_RULE(MisalignedMap, 1, "is not aligned to 64 bytes"),
    SIM_TEST_RULE(MisalignedLoad, 1, "not aligned to 128 bytes"),
    SIM_TEST_RULE(LoadIsNotAwaited, 1, "has waited for the last TMA load"),
    SIM_TEST_RULE(LoadOverMbarrier, 1, "touches an mbarrier"),
    SIM_TEST_RULE(MapOfRankThree, 1, "with a tensor map of rank 3"),
    SIM_TEST_RULE(MisalignedStore, 1, "not aligned to 1024 bytes"),
    SIM_TEST_RULE(DescriptorCarry, 1, "bits outside its fields"),
    SIM_TEST_RULE(DescriptorBaseOffset, 1, "base offset is not simulated"),
    SIM_TEST_RULE(ShapeChangesInFlight, 1, "overlap those of an operation in flight"),
    SIM_TEST_RULE(GroupsDiffer, 1, "another"),
    SIM_TEST_RULE(ExitWithWgmma, 1, "warp exits with a wgmma in flight"),
};

std::vector<SimKernel> ListKernels() {
  std::vector<SimKernel> kernels;
  for (const Rule& rule : kRules) {
    kernels.push_back(rule.kept);
    kernels.push_back(rule.broken);
  }
  return kernels;
}

const std::vector<SimKernel> kKernels = ListKernels();
const KernelTable kTable(kKernels.data(), kKernels.size());

// What one run found: "" if nothing.
std::string Run(const SimKernel& kernel, Params& params) {
  const Geometry geometry = {2, rules::kThreads, kernel.cluster, rules::kSmemBytes};
  const fp8gemm::CUresult result = Launch(kernel.key, geometry, &params);
  if (result == fp8gemm::CUDA_SUCCESS) return "";
  CHECK(result == fp8gemm::CUDA_ERROR_LAUNCH_FAILED);
  return Fp8GemmSimDriver()->last_report();
}

TensorMap EncodeRankThree() {
  alignas(128) static uint8_t memory[4096];
  const uint64_t dims[] = {64, 8, 2};
  const uint64_t strides[] = {256, 2048};
  const uint32_t box[] = {64, 1, 1};
  const uint32_t element_strides[] = {1, 1, 1};
  fp8gemm::CUtensorMap encoded;
  CHECK(Fp8GemmSimDriver()->cuTensorMapEncodeTiled(
            &encoded, fp8gemm::CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 3, memory, dims, strides, box,
            element_strides, fp8gemm::CU_TENSOR_MAP_INTERLEAVE_NONE,
            fp8gemm::CU_TENSOR_MAP_SWIZZLE_NONE, fp8gemm::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            fp8gemm::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == fp8gemm::CUDA_SUCCESS);
  TensorMap map;
  std::memcpy(&map, &encoded, sizeof map);
  return map;
}

bool TestRule(const Rule& rule, Params& params) {
  for (int32_t timing = 0; timing < 3; ++timing) {
    for (int32_t scheduler = 0; scheduler < 3; ++scheduler) {
      SimOptions options;
      options.seed = 3 * uint64_t(timing) + uint64_t(scheduler);
      options.timing = timing;
      options.scheduler = scheduler;
      Fp8GemmSimSetOptions(&options);
      const std::string kept = Run(rule.kept, params);
      const std::string broken = Run(rule.broken, params);
      if (kept.empty() && broken.find(rule.report) != std::string::npos) continue;
      std::printf("FAILED: %s\nkept: %s\nbroken, wanted '%s': %s\n", rule.name, kept.c_str(),
                  rule.report, broken.c_str());
      return false;
    }
  }
  std::printf("ok: %s\n", rule.name);
  return true;
}

bool TestRules() {
  Problem problem(1);
  problem.RegisterRanges();
  Params params = *problem.params();
  params.b = EncodeRankThree();
  bool is_ok = true;
  for (const Rule& rule : kRules) is_ok &= TestRule(rule, params);
  return is_ok;
}

}  // namespace
}  // namespace sim_test

int main() { return sim_test::TestRules() ? 0 : 1; }
