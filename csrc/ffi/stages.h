// SPDX-License-Identifier: Apache-2.0
// The stages of a custom call, the same for every one, and how exceptions become XLA's errors.
#pragma once
#include <concepts>
#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "driver/driver.h"
#include "driver/error.h"
#include "ffi/call_state.h"
#include "ffi/handlers.h"
#include "xla/ffi/api/ffi.h"

namespace fp8gemm {

template <typename Call>
using PlanOf = decltype(std::declval<Call>().MakePlan(Backend::kCuda));

/// What attributes decode to. `kTarget` is its name in messages; `Run` checks the buffers.
template <typename Call>
concept CustomCall = std::constructible_from<Call, xla::ffi::Dictionary> &&
                     requires(PlanOf<Call> plan, xla::ffi::RemainingArgs operands,
                              xla::ffi::RemainingRets results, CUstream stream) {
                       { Call::kTarget } -> std::convertible_to<std::string>;
                       plan.Prepare();
                       Call::Run(plan, operands, results, stream);
                     };

/// State of one call site in one executable; shared by all devices that run it.
template <typename Call>
struct StateOf {
  static inline xla::ffi::TypeId id = {};
  PlanOf<Call> plan;
};

/// Runs the body of a handler. Whatever it throws becomes an error: XLA's FFI catches nothing.
template <typename Body>
xla::ffi::Error Guard(const char* target, Body&& body) noexcept {
  using xla::ffi::ErrorCode;
  const auto error = [&](ErrorCode code, const char* what) {
    return xla::ffi::Error(code, std::string(target) + ": " + what);
  };
  try {
    body();
    return xla::ffi::Error::Success();
  } catch (const UnsupportedError& unsupported) {
    return error(ErrorCode::kUnimplemented, unsupported.what());
  } catch (const InterruptedError& interrupted) {
    return error(ErrorCode::kCancelled, interrupted.what());
  } catch (const std::exception& other) {
    return error(ErrorCode::kInternal, other.what());
  } catch (...) {
    return error(ErrorCode::kInternal, "unknown exception");
  }
}

/// Chooses a configuration and compiles it.
template <typename Call>
xla::ffi::ErrorOr<std::unique_ptr<StateOf<Call>>> Instantiate(xla::ffi::Dictionary attributes) {
  std::unique_ptr<StateOf<Call>> state;
  xla::ffi::Error error = Guard(Call::kTarget, [&] {
    state.reset(new StateOf<Call>{Call(attributes).MakePlan(Backend::kCuda)});
  });
  if (error.failure()) return xla::ffi::Unexpected(std::move(error));
  return state;
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

/// All stages at once, in the simulator: its handlers have no state to keep a plan in.
template <typename Call>
xla::ffi::Error SimExecute(xla::ffi::RemainingArgs operands, xla::ffi::RemainingRets results,
                           xla::ffi::Dictionary attributes) {
  return Guard(Call::kTarget, [&] {
    PlanOf<Call> plan = Call(attributes).MakePlan(Backend::kSim);
    Call::Run(plan, operands, results, nullptr);
  });
}

template <CustomCall Call>
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
