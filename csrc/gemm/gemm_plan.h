// SPDX-License-Identifier: Apache-2.0
// GemmPlan: one problem with its chosen kernel, from compilation to launch.
#pragma once
#include <string>

#include "gemm/sm90_fp8_gemm.h"
#include "jit/kernel.h"

namespace fp8gemm {

/// Safe to use from many threads and on many devices at the same time, as Kernel is.
class GemmPlan {
 public:
  /// Chooses a configuration, or takes that of `config_key` if it is not empty, and makes the
  /// machine code. Works without a GPU; the driver is not touched. Throws as `SelectConfig` and
  /// `Kernel::Shared`.
  GemmPlan(Backend backend, const GemmProblem& problem, const std::string& config_key);

  const GemmProblem& problem() const { return problem_; }

  /// Loads the kernel on the current device. To be called before the first stream capture there.
  void Prepare() { kernel_.Load(); }

  /// Encodes the tensor maps and launches on `stream`, on at most the SMs that the problem allows.
  void Run(const GemmBuffers& buffers, CUstream stream);

 private:
  GemmProblem problem_;
  GemmConfig config_;
  Kernel& kernel_;
};

}  // namespace fp8gemm
