// SPDX-License-Identifier: Apache-2.0
// Takes the candidate of least modelled time, unless a configuration is named.
#include "gemm/select_config.h"

#include <algorithm>

#include "driver/error.h"
#include "gemm/config_key.h"
#include "gemm/sim_kernels.h"
#include "gemm/sm90_fp8_gemm.h"

namespace fp8gemm {
namespace {

// Whether `config` is `untiled` with some tile.
bool IsTiled(const GemmConfig& config, GemmConfig untiled) {
  untiled.block_m = config.block_m;
  untiled.block_n = config.block_n;
  untiled.num_consumers = config.num_consumers;
  untiled.num_stages = config.num_stages;
  untiled.cluster_m = config.cluster_m;
  untiled.cluster_n = config.cluster_n;
  untiled.split_k = config.split_k;
  return config == untiled;
}

GemmConfig NamedConfig(const GemmProblem& problem, const std::string& config_key) {
  GemmConfig config = ParseConfigKey(config_key);
  config.pdl = problem.pdl;
  if (!IsTiled(config, problem.untiled_config())) {
    throw UnsupportedError("configuration '" + config_key + "' does not compute " +
                           problem.ToString());
  }
  const int64_t ctas =
      Grid(problem, config, ResidentClusters(problem.num_sms, config.cluster_size()));
  if (problem.sm_limit > 0 && ctas > problem.sm_limit) {
    throw UnsupportedError("configuration '" + config_key + "' needs " + std::to_string(ctas) +
                           " SMs for " + problem.ToString());
  }
  return config;
}

}  // namespace

std::vector<RankedConfig> RankConfigs(const GemmProblem& problem, Backend backend) {
  std::vector<RankedConfig> ranked;
  for (const GemmConfig& config : CandidatesOf(problem.untiled_config())) {
    // A cluster needs its CTAs resident together.
    if (int64_t{config.cluster_size()} > problem.num_sms) continue;
    if (backend == Backend::kSim && !IsSimulated(config)) continue;
    const CostEstimate cost = EstimateCost(problem, config);
    // With split K all clusters are launched, one for each tile: they must be resident at once.
    if (config.split_k > 1 && cost.tiles_per_cta > 1) continue;
    ranked.push_back({config, cost});
  }
  std::ranges::stable_sort(ranked, {}, [](const RankedConfig& each) { return each.cost.cycles; });
  return ranked;
}

GemmConfig SelectConfig(const GemmProblem& problem, Backend backend,
                        const std::string& config_key) {
  ValidateProblem(problem);
  if (!config_key.empty()) return NamedConfig(problem, config_key);
  const std::vector<RankedConfig> ranked = RankConfigs(problem, backend);
  if (ranked.empty()) {
    throw UnsupportedError("no kernel configuration is available for " + problem.ToString());
  }
  return ranked.front().config;
}

}  // namespace fp8gemm
