// SPDX-License-Identifier: Apache-2.0
// QuantizePlan: one quantise problem with its kernel, from compilation to launch.
// Called by ffi/quantize_handlers.cc; launches kernels/sm90_quantize.cuh.
#pragma once
#include <memory>
#include <mutex>
#include <string>

#include "jit/kernel.h"
#include "quantize/quantize_problem.h"

namespace fp8gemm {

/// Device addresses of one call; extents are those of the problem.
struct QuantizeBuffers {
  void* x = nullptr;
  void* x_scales = nullptr;     // nullptr unless x is float8
  void* group_sizes = nullptr;  // (batches, num_groups) int32; nullptr unless there are groups
  void* values = nullptr;
  void* scales = nullptr;
};

/// Immutable after construction but for the kernel it loads once; safe to use from many threads and
/// on many devices at the same time.
class QuantizePlan {
 public:
  /// Makes the machine code. Works without a GPU; the driver is not touched.
  /// @throws UnsupportedError  The problem is out of range, or there is no NVRTC.
  /// @throws CompileError  The kernel does not compile.
  QuantizePlan(Backend backend, const QuantizeProblem& problem);

  const QuantizeProblem& problem() const { return problem_; }

  /// Loads the kernel for the current device, and returns it. The first time before any stream
  /// capture. The device is that of the CUDA context that is current on this thread. XLA makes
  /// that of the program's device current for the whole of an execution, initialize and execute of
  /// every handler included: xla/service/gpu/gpu_executable.cc, ExecuteAsyncOnStreamImpl.
  const DeviceKernel& Prepare();

  /// Launches on `stream`.
  void Run(const QuantizeBuffers& buffers, CUstream stream);

 private:
  Backend backend_;
  QuantizeProblem problem_;
  KernelSpec kernel_spec_;
  std::shared_ptr<const std::string> image_;
  std::once_flag load_once_;
  std::shared_ptr<LoadedKernel> kernel_;
};

}  // namespace fp8gemm
