// SPDX-License-Identifier: Apache-2.0
// Plans of the simulator, whose handlers have no state to keep them in.
#pragma once
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "driver/driver.h"

namespace fp8gemm {

/// The plan `Plan(Backend::kSim, arguments...)` for `key`, which is what determines it. Those that
/// were used last are kept, as few as a program with many shapes needs at a time.
template <typename Plan, typename... Arguments>
std::shared_ptr<Plan> SimPlan(const std::string& key, const Arguments&... arguments) {
  constexpr size_t kMaxPlans = 64;
  static std::mutex mutex;
  static auto& plans = *new std::list<std::pair<std::string, std::shared_ptr<Plan>>>;  // last first
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = plans.begin();
  while (found != plans.end() && found->first != key) ++found;
  if (found == plans.end()) {
    plans.emplace_front(key, std::make_shared<Plan>(Backend::kSim, arguments...));
    if (plans.size() > kMaxPlans) plans.pop_back();
  } else {
    plans.splice(plans.begin(), plans, found);
  }
  return plans.front().second;
}

}  // namespace fp8gemm
