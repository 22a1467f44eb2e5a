// SPDX-License-Identifier: Apache-2.0
// Ties the choice of a configuration, its kernel and its launch together.
#include "gemm/gemm_plan.h"

#include <algorithm>

#include "gemm/select_config.h"

namespace fp8gemm {

GemmPlan::GemmPlan(Backend backend, const GemmProblem& problem, const std::string& config_key)
    : problem_(problem),
      config_(SelectConfig(problem, backend, config_key)),
      kernel_(Kernel::Shared(backend, GemmKernel(config_))) {}

void GemmPlan::Run(const GemmBuffers& buffers, CUstream stream) {
  const Kernel::Loaded& loaded = kernel_.Load();
  int64_t clusters = loaded.max_clusters;
  if (problem_.sm_limit > 0) {
    clusters = std::clamp<int64_t>(problem_.sm_limit / config_.cluster_size(), 1, clusters);
  }
  GemmParams params = MakeGemmParams(kernel_.driver(), problem_, config_, buffers, clusters);
  kernel_.Launch(loaded, Grid(problem_, config_, clusters), stream, &params);
}

}  // namespace fp8gemm
