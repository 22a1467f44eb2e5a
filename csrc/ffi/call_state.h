// SPDX-License-Identifier: Apache-2.0
// The state of a custom call, for handlers of any runtime that XLA's headers may meet.
#pragma once
#include <cstdint>
#include <optional>

#include "xla/ffi/api/ffi.h"

namespace fp8gemm {

/// Binds the state that the instantiate handler made: `.Ctx<CallState<T>>()` gives `T*`, not null.
///
/// In place of ffi::State<T>. We build against the oldest supported headers, of FFI API 0.2. The
/// runtimes of API 0.3 add a field to the request for a state, and those of jaxlib 0.9.1 and 0.9.2
/// answer a request of the old size with success and no state. So they get one of the new size.
template <typename T>
struct CallState {};

namespace ffi_internal {

/// XLA_FFI_State_Get_Args since API 0.3.
struct StateRequest {
  size_t struct_size;
  void* extension_start;  // whose type newer headers give another name
  XLA_FFI_ExecutionContext* ctx;
  XLA_FFI_ExecutionStage stage;  // new: the stage whose handler made the state
  XLA_FFI_TypeId* type_id;
  void* state;  // out
};
inline constexpr int32_t kStageSinceMinorVersion = 3;

}  // namespace ffi_internal
}  // namespace fp8gemm

namespace xla::ffi {

template <typename T>
struct CtxDecoding<fp8gemm::CallState<T>> {
  using Type = T*;

  static std::optional<Type> Decode(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* ctx,
                                    DiagnosticEngine& diagnostic) {
    using fp8gemm::ffi_internal::StateRequest;
    if (api->api_version.minor_version < fp8gemm::ffi_internal::kStageSinceMinorVersion) {
      return NotNull(CtxDecoding<State<T>>::Decode(api, ctx, diagnostic), diagnostic);
    }
    StateRequest request{
        sizeof(StateRequest), nullptr, ctx, XLA_FFI_ExecutionStage_INSTANTIATE, &T::id, nullptr};
    if (XLA_FFI_Error* const error =
            api->XLA_FFI_State_Get(reinterpret_cast<XLA_FFI_State_Get_Args*>(&request))) {
      diagnostic.Emit("Failed to get the state of the call: ")
          << internal::GetErrorMessage(api, error);
      internal::DestroyError(api, error);
      return std::nullopt;
    }
    return NotNull(static_cast<Type>(request.state), diagnostic);
  }

 private:
  static std::optional<Type> NotNull(std::optional<Type> state, DiagnosticEngine& diagnostic) {
    if (state.has_value() && *state == nullptr) {
      diagnostic.Emit("XLA handed over no state of the call; update jaxlib");
      return std::nullopt;
    }
    return state;
  }
};

}  // namespace xla::ffi
