// SPDX-License-Identifier: Apache-2.0
// Ties planner, kernel cache, loaded kernels and launch together.
#include "gemm/gemm_plan.h"

#include <algorithm>

#include "gemm/config_key.h"
#include "gemm/kernel_source.h"
#include "gemm/select_config.h"
#include "runtime/error.h"
#include "shared/sim_kernels.h"

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

}  // namespace

bool BackendHasConfig(Backend backend, const GemmConfig& config) {
  return backend == Backend::kCuda || is_simulated(config);
}

GemmPlan::GemmPlan(Backend backend, const GemmProblem& problem, const std::string& config_key)
    : backend_(backend), problem_(problem) {
  ValidateProblem(problem);
  if (config_key.empty()) {
    config_ = SelectConfig(
        problem, [&](const GemmConfig& config) { return BackendHasConfig(backend, config); });
  } else {
    config_ = ParseConfigKey(config_key);
    config_.pdl = problem.pdl;
    if (!HasTypesOf(config_, problem.types())) {
      throw UnsupportedError("configuration '" + config_key + "' does not compute " +
                             problem.ToString());
    }
    const int64_t ctas = MakeLaunchGeometry(problem, config_, problem.num_sms).grid;
    if (problem.sm_limit > 0 && ctas > problem.sm_limit) {
      throw UnsupportedError("configuration '" + config_key + "' needs " + std::to_string(ctas) +
                             " SMs for " + problem.ToString());
    }
  }
  kernel_spec_ = GemmKernel(config_);
  image_ = MakeImage(backend, kernel_spec_);
}

const DeviceKernel& GemmPlan::Prepare() {
  std::call_once(load_once_, [&] { kernel_ = SharedKernel(backend_, kernel_spec_, image_); });
  return kernel_->ForCurrentContext();
}

void GemmPlan::Run(const GemmBuffers& buffers, CUstream stream) {
  const DeviceKernel& kernel = Prepare();
  const DriverApi& api = kernel_->api();
  const int num_sms =
      problem_.sm_limit > 0 ? std::min(problem_.sm_limit, kernel.sm_count) : kernel.sm_count;
  GemmParams params = MakeGemmParams(api, problem_, config_, buffers, num_sms);
  Launch(api, kernel.function, MakeLaunchGeometry(problem_, config_, num_sms), stream, &params);
}

}  // namespace fp8gemm
