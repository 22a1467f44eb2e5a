// SPDX-License-Identifier: Apache-2.0
// What NVRTC compiles for a configuration.
#pragma once
#include "jit/kernel.h"
#include "shared/gemm_config.h"

namespace fp8gemm {

/// The kernel of a configuration; its entry point is e.g. "sm90_fp8_gemm_1d2d_ragged".
KernelSource GemmKernel(const GemmConfig& config);

}  // namespace fp8gemm
