// SPDX-License-Identifier: Apache-2.0
// PlannedKernel: what every plan has, a kernel from its machine code to one device.
#pragma once
#include <memory>
#include <mutex>
#include <string>

#include "jit/kernel.h"

namespace fp8gemm {

/// Immutable after construction but for the kernel it loads once; safe to use from many threads and
/// on many devices at the same time.
class PlannedKernel {
 public:
  /// Makes the machine code. Works without a GPU; the driver is not touched.
  /// @throws UnsupportedError  There is no NVRTC.
  /// @throws CompileError  The kernel does not compile.
  PlannedKernel(Backend backend, KernelSpec spec);

  /// Loads the kernel for the current device, and returns it. The first time before any stream
  /// capture. The device is that of the CUDA context that is current on this thread, which XLA is
  /// trusted to have made that of the program's device.
  const DeviceKernel& OnCurrentDevice();

  const KernelSpec& spec() const { return spec_; }

 private:
  Backend backend_;
  KernelSpec spec_;
  std::shared_ptr<const std::string> image_;
  std::once_flag load_once_;
  std::shared_ptr<LoadedKernel> kernel_;
};

}  // namespace fp8gemm
