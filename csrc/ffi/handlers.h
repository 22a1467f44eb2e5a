// SPDX-License-Identifier: Apache-2.0
// The FFI handlers that Python registers; bindings/module.cc lists them.
#pragma once
#include "xla/ffi/api/ffi.h"

// GEMMs of every kind on CUDA: plan and compile; load for the device; launch.
XLA_FFI_DECLARE_HANDLER_SYMBOL(Fp8GemmInstantiate);
XLA_FFI_DECLARE_HANDLER_SYMBOL(Fp8GemmInitialize);
XLA_FFI_DECLARE_HANDLER_SYMBOL(Fp8GemmExecute);

// GEMMs of every kind on the CPU, through the simulator. Stateless: XLA's CPU client cannot be
// created once a handler with state is registered for it.
XLA_FFI_DECLARE_HANDLER_SYMBOL(Fp8GemmSimExecute);

// Quantizers of every layout: on CUDA, and on the CPU through the simulator, as above.
XLA_FFI_DECLARE_HANDLER_SYMBOL(Fp8QuantizeInstantiate);
XLA_FFI_DECLARE_HANDLER_SYMBOL(Fp8QuantizeInitialize);
XLA_FFI_DECLARE_HANDLER_SYMBOL(Fp8QuantizeExecute);
XLA_FFI_DECLARE_HANDLER_SYMBOL(Fp8QuantizeSimExecute);

// Does nothing, on any platform.
XLA_FFI_DECLARE_HANDLER_SYMBOL(Fp8EmptyExecute);

namespace fp8gemm {

/// Type id and type info of the state that Fp8GemmInstantiate makes, for jax.ffi.register_ffi_type.
XLA_FFI_TypeId* GemmStateTypeId();
const XLA_FFI_TypeInfo* GemmStateTypeInfo();

/// The same of the state that Fp8QuantizeInstantiate makes.
XLA_FFI_TypeId* QuantizeStateTypeId();
const XLA_FFI_TypeInfo* QuantizeStateTypeInfo();

}  // namespace fp8gemm
