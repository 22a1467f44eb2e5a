// SPDX-License-Identifier: Apache-2.0
// Argmin of the cost model over the legal candidates.
#include "gemm/select_config.h"

#include <algorithm>

#include "gemm/config_key.h"
#include "runtime/error.h"

namespace fp8gemm {

std::vector<RankedConfig> RankConfigs(const GemmProblem& problem, const ConfigFilter& filter) {
  ValidateProblem(problem);
  std::vector<RankedConfig> ranked;
  for (const GemmConfig& config : CandidateConfigs(problem.types())) {
    // A cluster needs its CTAs resident together.
    if (int64_t{config.cluster_size()} > problem.num_sms || !filter(config)) continue;
    ranked.push_back({config, EstimateCost(problem, config)});
  }
  std::stable_sort(ranked.begin(), ranked.end(), [](const RankedConfig& x, const RankedConfig& y) {
    return x.cost.cycles < y.cost.cycles;
  });
  return ranked;
}

GemmConfig SelectConfig(const GemmProblem& problem, const ConfigFilter& filter) {
  const std::vector<RankedConfig> ranked = RankConfigs(problem, filter);
  if (ranked.empty()) {
    throw UnsupportedError("no kernel configuration is available for " + problem.ToString());
  }
  return ranked.front().config;
}

}  // namespace fp8gemm
