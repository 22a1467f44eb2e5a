// SPDX-License-Identifier: Apache-2.0
// Ties planner, kernel cache, loaded kernels and launch together.
#include "gemm/gemm_plan.h"

#include <algorithm>

#include "driver/error.h"
#include "gemm/config_key.h"
#include "gemm/kernel_source.h"
#include "gemm/select_config.h"
#include "gemm/sim_kernels.h"

namespace fp8gemm {
namespace {

// Whether `config` is one of the kernels for the kind, scaling and element types of `types`.
bool HasTypesOf(const GemmConfig& config, GemmConfig types) {
  types.block_m = config.block_m;
  types.block_n = config.block_n;
  types.num_consumers = config.num_consumers;
  types.num_stages = config.num_stages;
  types.cluster_m = config.cluster_m;
  types.cluster_n = config.cluster_n;
  types.split_k = config.split_k;
  return types == config;
}

// The configuration of `config_key`, or the best one if it is empty.
GemmConfig ChooseConfig(Backend backend, const GemmProblem& problem,
                        const std::string& config_key) {
  ValidateProblem(problem);
  if (config_key.empty()) {
    return SelectConfig(
        problem, [&](const GemmConfig& config) { return BackendHasConfig(backend, config); });
  }
  GemmConfig config = ParseConfigKey(config_key);
  config.pdl = problem.pdl;
  if (!HasTypesOf(config, problem.types())) {
    throw UnsupportedError("configuration '" + config_key + "' does not compute " +
                           problem.ToString());
  }
  const int64_t ctas = MakeLaunchGeometry(problem, config, problem.num_sms).grid;
  if (problem.sm_limit > 0 && ctas > problem.sm_limit) {
    throw UnsupportedError("configuration '" + config_key + "' needs " + std::to_string(ctas) +
                           " SMs for " + problem.ToString());
  }
  return config;
}

}  // namespace

bool BackendHasConfig(Backend backend, const GemmConfig& config) {
  return backend == Backend::kCuda || is_simulated(config);
}

GemmPlan::GemmPlan(Backend backend, const GemmProblem& problem, const std::string& config_key)
    : backend_(backend),
      problem_(problem),
      config_(ChooseConfig(backend, problem, config_key)),
      kernel_(backend, GemmKernel(config_)) {}

void GemmPlan::Run(const GemmBuffers& buffers, CUstream stream) {
  const DeviceKernel& kernel = kernel_.OnCurrentDevice();
  const DriverApi& api = Driver(backend_);
  const int num_sms =
      problem_.sm_limit > 0 ? std::min(problem_.sm_limit, kernel.sm_count) : kernel.sm_count;
  GemmParams params = MakeGemmParams(api, problem_, config_, buffers, num_sms);
  Launch(api, kernel.function, MakeLaunchGeometry(problem_, config_, num_sms), stream, &params);
}

}  // namespace fp8gemm
