// SPDX-License-Identifier: Apache-2.0
// QuantizePlan: one quantize problem with its kernel, from compilation to launch.
// Called by ffi/quantize_handlers.cc; launches kernels/fp8_quantize/sm90_quantize.cuh.
#pragma once
#include "jit/kernel.h"
#include "quantize/quantize_problem.h"

namespace fp8gemm {

/// Device addresses of one call; extents are those of the problem.
struct QuantizeBuffers {
  void* x = nullptr;
  void* up = nullptr;           // gated; nullptr where it lies behind x in each row
  void* row_factors = nullptr;  // nullptr unless normalized, as column_factors
  void* column_factors = nullptr;
  void* x_scales = nullptr;     // nullptr unless x is float8
  void* group_sizes = nullptr;  // (batches, num_groups) int32; nullptr unless there are any
  void* values = nullptr;
  void* scales = nullptr;
  void* row_values = nullptr;  // nullptr unless the layout has rows beside a transposed one
  void* row_scales = nullptr;
};

/// Safe to use from many threads and on many devices at the same time, as Kernel is.
class QuantizePlan {
 public:
  /// Makes the machine code. Works without a GPU; the driver is not touched.
  /// @throws UnsupportedError  The problem is out of range, or there is no NVRTC.
  /// @throws CompileError  The kernel does not compile.
  QuantizePlan(Backend backend, const QuantizeProblem& problem);

  const QuantizeProblem& problem() const { return problem_; }

  /// Loads the kernel for the current device. The first time before any stream capture.
  void Prepare() { kernel_.Load(); }

  /// Launches on `stream`.
  void Run(const QuantizeBuffers& buffers, CUstream stream);

 private:
  QuantizeProblem problem_;
  Kernel& kernel_;
};

}  // namespace fp8gemm
