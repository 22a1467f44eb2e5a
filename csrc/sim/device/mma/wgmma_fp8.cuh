// SPDX-License-Identifier: Apache-2.0
// Simulator twin of kernels/mma/wgmma_fp8.cuh.
#pragma once
#include <ptx/base.cuh>
#include <shared/gemm_config.h>

namespace fp8gemm::ptx {

template <Fp8Type kA, Fp8Type kB, uint32_t kN>
FP8GEMM_DEVICE void wgmma_m64k32(float (&d)[kN / 2], uint64_t a_desc, uint64_t b_desc,
                                 bool scale_d) {
  static_assert(kN >= 8 && kN <= 256 && kN % 8 == 0);
  sim::Wgmma(d, kN, static_cast<uint32_t>(kA), static_cast<uint32_t>(kB), a_desc, b_desc, scale_d);
}

}  // namespace fp8gemm::ptx
