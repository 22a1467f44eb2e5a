// SPDX-License-Identifier: Apache-2.0
// What NVRTC compiles for a quantize kernel.
#pragma once
#include "jit/kernel.h"
#include "shared/quantize_config.h"

namespace fp8gemm {

/// The kernel of a configuration; its entry point is e.g. "sm90_quantize_rows".
KernelSource QuantizeKernel(const QuantizeConfig& config);

}  // namespace fp8gemm
