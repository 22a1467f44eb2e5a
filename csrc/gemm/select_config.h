// SPDX-License-Identifier: Apache-2.0
// The heuristics: which kernel runs a problem.
#pragma once
#include <string>
#include <vector>

#include "driver/driver.h"
#include "gemm/cost_model.h"

namespace fp8gemm {

struct RankedConfig {
  GemmConfig config;
  CostEstimate cost;
};

/// All candidates for a valid problem that `backend` can run, least modelled time first; ties keep
/// table order. The simulator has only those that it was built with.
std::vector<RankedConfig> RankConfigs(const GemmProblem& problem, Backend backend);

/// The configuration of `config_key`, or the first of RankConfigs if it is empty. Pure: every
/// process picks the same kernel for the same problem.
/// @throws UnsupportedError  The problem is not valid, there is no candidate, or no kernel of
///     `config_key` computes the problem on so many SMs. The message names the problem.
GemmConfig SelectConfig(const GemmProblem& problem, Backend backend, const std::string& config_key);

}  // namespace fp8gemm
