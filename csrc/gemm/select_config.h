// SPDX-License-Identifier: Apache-2.0
// The planner: which kernel runs a problem.
#pragma once
#include <functional>
#include <vector>

#include "gemm/cost_model.h"

namespace fp8gemm {

struct RankedConfig {
  GemmConfig config;
  CostEstimate cost;
};

/// Which configurations may be chosen; the simulator has only those that were built in.
using ConfigFilter = std::function<bool(const GemmConfig&)>;

/// All candidates for the types of `problem`, least modelled time first; ties keep table order.
std::vector<RankedConfig> RankConfigs(const GemmProblem& problem, const ConfigFilter& filter);

/// The first of RankConfigs. Pure: every process picks the same kernel for the same problem.
/// @throws UnsupportedError  The filter leaves no candidate; the message names the problem.
GemmConfig SelectConfig(const GemmProblem& problem, const ConfigFilter& filter);

}  // namespace fp8gemm
