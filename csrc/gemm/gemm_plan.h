// SPDX-License-Identifier: Apache-2.0
// GemmPlan: one problem with its chosen kernel, from compilation to launch.
#pragma once
#include <memory>
#include <mutex>
#include <string>

#include "gemm/sm90_fp8_gemm.h"
#include "jit/kernel.h"

namespace fp8gemm {

/// Which configurations `backend` can run: all, or those the simulator was built with.
bool BackendHasConfig(Backend backend, const GemmConfig& config);

/// Immutable after construction but for the kernel it loads once; safe to use from many threads and
/// on many devices at the same time.
class GemmPlan {
 public:
  /// Chooses a configuration, or parses `config_key` if it is not empty, and makes the machine
  /// code. Works without a GPU; the driver is not touched.
  /// @throws UnsupportedError  No configuration fits, or there is no NVRTC.
  /// @throws CompileError  The kernel does not compile.
  GemmPlan(Backend backend, const GemmProblem& problem, const std::string& config_key);

  const GemmProblem& problem() const { return problem_; }
  const GemmConfig& config() const { return config_; }

  /// Loads the kernel for the current device, and returns it. The first time before any stream
  /// capture. The device is that of the CUDA context that is current on this thread. XLA makes
  /// that of the program's device current for the whole of an execution, initialize and execute of
  /// every handler included: xla/service/gpu/gpu_executable.cc, ExecuteAsyncOnStreamImpl.
  const DeviceKernel& Prepare();

  /// Encodes the tensor maps and launches on `stream`, on at most problem().sm_limit SMs.
  void Run(const GemmBuffers& buffers, CUstream stream);

 private:
  Backend backend_;
  GemmProblem problem_;
  GemmConfig config_;
  KernelSpec kernel_spec_;
  std::shared_ptr<const std::string> image_;
  std::once_flag load_once_;
  std::shared_ptr<LoadedKernel> kernel_;
};

}  // namespace fp8gemm
