// SPDX-License-Identifier: Apache-2.0
// A CPU handler with state, bound as those of csrc/ffi are, and one bound with XLA's own State<T>.
// state_program.py calls both; __main__.py compiles this against the oldest supported headers.
#include <cstdint>
#include <memory>

#include "ffi/call_state.h"

namespace {

namespace ffi = xla::ffi;

struct Number {
  static ffi::TypeId id;
  int64_t value;
};
ffi::TypeId Number::id = {};

ffi::ErrorOr<std::unique_ptr<Number>> Instantiate(int64_t value) {
  return std::make_unique<Number>(Number{value});
}

// Writes the number of the state, -1 where there is no state.
ffi::Error Execute(Number* number, ffi::ResultBufferR0<ffi::S32> out, ffi::Dictionary) {
  *out->typed_data() = number == nullptr ? -1 : static_cast<int32_t>(number->value);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    NumberInstantiate, Instantiate,
    ffi::Ffi::Bind<ffi::ExecutionStage::kInstantiate>().Attr<int64_t>("value"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    OursExecute, Execute,
    ffi::Ffi::Bind().Ctx<fp8gemm::CallState<Number>>().Ret<ffi::BufferR0<ffi::S32>>().Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    PlainExecute, Execute,
    ffi::Ffi::Bind().Ctx<ffi::State<Number>>().Ret<ffi::BufferR0<ffi::S32>>().Attrs());

extern "C" void* NumberTypeId() { return &Number::id; }

extern "C" const void* NumberTypeInfo() {
  static const XLA_FFI_TypeInfo info = ffi::MakeTypeInfo<Number>();
  return &info;
}
