// SPDX-License-Identifier: Apache-2.0
// Reading a custom call: its attributes by name and type; its buffers, checked against what the
// attributes promise, as memory safety needs it and no more; and its state.
#pragma once
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include "shared/gemm_config.h"
#include "xla/ffi/api/ffi.h"

namespace fp8gemm {

/// The attributes of a call for ReadProblem and its like.
struct AttributeReader {
  const xla::ffi::Dictionary& attributes;

  /// @throws std::invalid_argument  There is none of that name and type; of the others too.
  template <typename T>
  T Get(const char* name) const {
    const xla::ffi::ErrorOr<T> value = attributes.get<T>(name);
    if (value.has_value()) return *value;
    throw std::invalid_argument(std::string("attribute ") + name + ": " + value.error().message());
  }
  std::string Text(const char* name) const { return std::string(Get<std::string_view>(name)); }
  int64_t Number(const char* name) const { return Get<int64_t>(name); }
  bool Flag(const char* name) const { return Get<bool>(name); }
};

/// XLA's element type for ours.
inline xla::ffi::DataType ToDataType(Fp8Type type) {
  return type == Fp8Type::kE4M3 ? xla::ffi::DataType::F8E4M3FN : xla::ffi::DataType::F8E5M2;
}

inline xla::ffi::DataType ToDataType(OutType type) {
  switch (type) {
    case OutType::kBF16: return xla::ffi::DataType::BF16;
    case OutType::kF16: return xla::ffi::DataType::F16;
    case OutType::kF32: return xla::ffi::DataType::F32;
  }
  return xla::ffi::DataType::INVALID;
}

inline std::string ShapeText(std::span<const int64_t> extents) {
  std::string text;
  for (const int64_t extent : extents) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return "(" + text + ")";
}

/// Address of a buffer that must have this element type and these extents. Allocates nothing
/// unless it has not.
/// @throws std::invalid_argument  It has not; the message names the operand and both.
inline void* CheckedData(const char* operand, xla::ffi::AnyBuffer buffer, xla::ffi::DataType type,
                         std::span<const int64_t> extents) {
  const auto got = buffer.dimensions();
  if (buffer.element_type() == type &&
      std::equal(got.begin(), got.end(), extents.begin(), extents.end())) {
    return buffer.untyped_data();
  }
  throw std::invalid_argument(std::string(operand) + " must have shape " + ShapeText(extents) +
                              " and XLA element type " + std::to_string(int(type)) + ", got " +
                              ShapeText({got.begin(), got.size()}) + " and " +
                              std::to_string(int(buffer.element_type())));
}

/// The operands of a call (RemainingArgs) or its results (RemainingRets), one after the other, each
/// checked before it is used.
template <typename Remaining>
class Buffers {
 public:
  /// @throws std::invalid_argument  There are not `expected` of them.
  Buffers(Remaining buffers, size_t expected) : buffers_(buffers) {
    if (buffers.size() == expected) return;
    throw std::invalid_argument("expected " + std::to_string(expected) +
                                (kAreOperands ? " operands" : " results") + ", got " +
                                std::to_string(buffers.size()));
  }

  void* Next(const char* name, xla::ffi::DataType type, std::span<const int64_t> extents) {
    auto buffer = buffers_.template get<xla::ffi::AnyBuffer>(next_++);
    if constexpr (kAreOperands) {
      return CheckedData(name, *buffer, type, extents);
    } else {
      return CheckedData(name, **buffer, type, extents);
    }
  }
  void* Next(const char* name, xla::ffi::DataType type, std::initializer_list<int64_t> extents) {
    return Next(name, type, std::span(extents.begin(), extents.size()));
  }

 private:
  static constexpr bool kAreOperands = std::is_same_v<Remaining, xla::ffi::RemainingArgs>;
  Remaining buffers_;
  size_t next_ = 0;
};

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
