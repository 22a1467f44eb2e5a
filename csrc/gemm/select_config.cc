// SPDX-License-Identifier: Apache-2.0
// Argmin of the cost model over the legal candidates.
#include "gemm/select_config.h"

#include <algorithm>

#include "driver/error.h"
#include "gemm/config_key.h"

namespace fp8gemm {

std::vector<RankedConfig> RankConfigs(const GemmProblem& problem, const ConfigFilter& filter) {
  ValidateProblem(problem);
  std::vector<RankedConfig> ranked;
  for (const GemmConfig& config : CandidateConfigs(problem.types())) {
    // A cluster needs its CTAs resident together.
    if (int64_t{config.cluster_size()} > problem.num_sms || !filter(config)) continue;
    const CostEstimate cost = EstimateCost(problem, config);
    // With split K all clusters are launched, one for each tile: they must be within num_sms.
    if (config.split_k > 1 && cost.tiles > problem.num_sms) continue;
    ranked.push_back({config, cost});
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
