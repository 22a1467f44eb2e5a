// SPDX-License-Identifier: Apache-2.0
// What Python registers: the handlers of each custom call; bindings/module.cc lists them.
#pragma once
#include "xla/ffi/api/ffi.h"

namespace fp8gemm {

/// The handlers of one custom call.
struct CallHandlers {
  // On CUDA: plan and compile; load for the device; launch. For jax.ffi.register_ffi_type the type
  // id and type info of the state that the first of them makes.
  XLA_FFI_Handler* instantiate;
  XLA_FFI_Handler* initialize;
  XLA_FFI_Handler* execute;
  XLA_FFI_TypeId* type_id;
  const XLA_FFI_TypeInfo* type_info;
  // On the CPU, through the simulator. Stateless: XLA's CPU client cannot be created once a handler
  // with state is registered for it.
  XLA_FFI_Handler* sim_execute;
};

CallHandlers GemmHandlers();      // GEMMs of every kind
CallHandlers QuantizeHandlers();  // quantizers of every layout

}  // namespace fp8gemm
