// SPDX-License-Identifier: Apache-2.0
// The stages of a custom call, the same for every one.
//
// A `Call` is what attributes decode to: Call(attributes); Call::kTarget, the name in messages;
// ToString, what tells its plan from others; MakePlan(backend); Call::Run(plan, operands, results,
// stream), which checks the buffers. A plan is as gemm/gemm_plan.h and quantize/quantize_plan.h.
#pragma once
#include <algorithm>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "driver/driver.h"
#include "ffi/call.h"
#include "ffi/guard.h"
#include "ffi/handlers.h"

namespace fp8gemm {

template <typename Call>
using PlanOf = decltype(std::declval<Call>().MakePlan(Backend::kCuda));

/// State of one call site in one executable; shared by all devices that run it.
template <typename Call>
struct StateOf {
  static inline xla::ffi::TypeId id = {};
  PlanOf<Call> plan;
};

template <typename Call>
xla::ffi::ErrorOr<std::unique_ptr<StateOf<Call>>> Instantiate(
    xla::ffi::Dictionary attributes) noexcept {
  try {
    // Chooses a configuration and compiles it.
    PlanOf<Call> plan = Call(attributes).MakePlan(Backend::kCuda);
    return std::make_unique<StateOf<Call>>(StateOf<Call>{std::move(plan)});
  } catch (...) {
    return xla::ffi::Unexpected(CurrentExceptionAsError(Call::kTarget));
  }
}

template <typename Call>
xla::ffi::Error Initialize(StateOf<Call>* state, xla::ffi::RemainingArgs, xla::ffi::RemainingRets,
                           xla::ffi::Dictionary) {
  return Guard(Call::kTarget, [&] { state->plan.Prepare(); });
}

template <typename Call>
xla::ffi::Error Execute(StateOf<Call>* state, CUstream stream, xla::ffi::RemainingArgs operands,
                        xla::ffi::RemainingRets results, xla::ffi::Dictionary) {
  return Guard(Call::kTarget, [&] { Call::Run(state->plan, operands, results, stream); });
}

/// The simulator's plan of a call: its handlers have no state to keep one in. Those that were used
/// last are kept, as few as a program with many shapes needs at a time.
template <typename Call>
std::shared_ptr<PlanOf<Call>> SimPlan(const Call& call) {
  constexpr size_t kMaxPlans = 64;
  static std::mutex mutex;
  using Kept = std::pair<std::string, std::shared_ptr<PlanOf<Call>>>;
  static auto& plans = *new std::list<Kept>;  // last first
  const std::string key = call.ToString();
  const std::lock_guard lock(mutex);
  const auto found = std::ranges::find(plans, key, &Kept::first);
  if (found == plans.end()) {
    plans.emplace_front(key, std::make_shared<PlanOf<Call>>(call.MakePlan(Backend::kSim)));
    if (plans.size() > kMaxPlans) plans.pop_back();
  } else {
    plans.splice(plans.begin(), plans, found);
  }
  return plans.front().second;
}

template <typename Call>
xla::ffi::Error SimExecute(xla::ffi::RemainingArgs operands, xla::ffi::RemainingRets results,
                           xla::ffi::Dictionary attributes) {
  return Guard(Call::kTarget,
               [&] { Call::Run(*SimPlan(Call(attributes)), operands, results, nullptr); });
}

template <typename Call>
CallHandlers HandlersOf() {
  namespace ffi = xla::ffi;
  using State = CallState<StateOf<Call>>;
  XLA_FFI_DEFINE_HANDLER(instantiate, Instantiate<Call>,
                         ffi::Ffi::Bind<ffi::ExecutionStage::kInstantiate>().Attrs());
  XLA_FFI_DEFINE_HANDLER(initialize, Initialize<Call>,
                         ffi::Ffi::Bind<ffi::ExecutionStage::kInitialize>()
                             .Ctx<State>()
                             .RemainingArgs()
                             .RemainingRets()
                             .Attrs());
  XLA_FFI_DEFINE_HANDLER(execute, Execute<Call>,
                         ffi::Ffi::Bind()
                             .Ctx<State>()
                             .template Ctx<ffi::PlatformStream<CUstream>>()
                             .RemainingArgs()
                             .RemainingRets()
                             .Attrs(),
                         {ffi::Traits::kCmdBufferCompatible});
  XLA_FFI_DEFINE_HANDLER(sim_execute, SimExecute<Call>,
                         ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attrs());
  static const XLA_FFI_TypeInfo type_info = ffi::MakeTypeInfo<StateOf<Call>>();
  return {instantiate, initialize, execute, &StateOf<Call>::id, &type_info, sim_execute};
}

}  // namespace fp8gemm
