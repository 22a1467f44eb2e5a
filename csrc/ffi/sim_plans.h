// SPDX-License-Identifier: Apache-2.0
// Plans of the simulator, whose handlers have no state to keep them in.
#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "driver/driver.h"

namespace fp8gemm {

/// The plan `Plan(Backend::kSim, arguments...)`, made once per `key`: what determines it.
/// Never removed: tests use a bounded set.
template <typename Plan, typename... Arguments>
Plan& SimPlan(const std::string& key, const Arguments&... arguments) {
  static std::mutex mutex;
  static auto& plans = *new std::map<std::string, std::unique_ptr<Plan>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Plan>& plan = plans[key];
  if (!plan) plan = std::make_unique<Plan>(Backend::kSim, arguments...);
  return *plan;
}

}  // namespace fp8gemm
