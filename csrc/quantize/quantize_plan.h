// SPDX-License-Identifier: Apache-2.0
// QuantizePlan: one quantize problem with its kernel, from compilation to launch.
// Called by ffi/quantize_handlers.cc; launches kernels/fp8_quantize/sm90_quantize.cuh.
#pragma once
#include "jit/kernel.h"
#include "quantize/quantize_problem.h"
#include "shared/quantize_config.h"
#include "shared/quantize_params.h"

namespace fp8gemm {

/// The kernel of a configuration; its entry point is e.g. "sm90_quantize_rows".
KernelSource QuantizeKernel(const QuantizeConfig& config);

/// Safe to use from many threads and on many devices at the same time, as Kernel is.
class QuantizePlan {
 public:
  /// Makes the machine code. Works without a GPU; the driver is not touched. Throws as
  /// `ValidateQuantizeProblem` and `Kernel::Shared`.
  QuantizePlan(Backend backend, const QuantizeProblem& problem);

  const QuantizeProblem& problem() const { return problem_; }

  /// Loads the kernel on the current device. To be called before the first stream capture there.
  void Prepare() { kernel_.Load(); }

  /// @param params  Its addresses, which are those of one call; the rest is set here. `up` is null
  ///     unless the kernel is gated, and where it lies behind `x` in each row; others are null
  ///     where the kernel has no such array.
  void Run(QuantizeParams params, CUstream stream);

 private:
  QuantizeProblem problem_;
  Kernel& kernel_;
};

}  // namespace fp8gemm
