// SPDX-License-Identifier: Apache-2.0
// Handler of the custom call `jax_fp8gemm.empty.v1`, which enqueues nothing: what a call costs
// beyond it is the cost of this package. Called by XLA; used by benchmarks only. Not for command
// buffers: before jax 0.10.2 XLA refuses to capture a call that enqueues nothing.
//
// Argument    any buffer. Result  the same buffer, by aliasing.
#include "ffi/handlers.h"

namespace fp8gemm {
namespace {

xla::ffi::Error Nothing(xla::ffi::AnyBuffer, xla::ffi::Result<xla::ffi::AnyBuffer>) {
  return xla::ffi::Error::Success();
}

}  // namespace
}  // namespace fp8gemm

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    Fp8EmptyExecute, fp8gemm::Nothing,
    xla::ffi::Ffi::Bind().Arg<xla::ffi::AnyBuffer>().Ret<xla::ffi::AnyBuffer>());
