// SPDX-License-Identifier: Apache-2.0
// Compiles when a plan is made, loads when it first runs.
#include "jit/planned_kernel.h"

#include <utility>

namespace fp8gemm {

PlannedKernel::PlannedKernel(Backend backend, KernelSpec spec)
    : backend_(backend), spec_(std::move(spec)), image_(MakeImage(backend_, spec_)) {}

const DeviceKernel& PlannedKernel::OnCurrentDevice() {
  std::call_once(load_once_, [&] { kernel_ = SharedKernel(backend_, spec_, image_); });
  return kernel_->ForCurrentContext();
}

}  // namespace fp8gemm
