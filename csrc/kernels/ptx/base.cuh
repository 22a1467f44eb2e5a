// SPDX-License-Identifier: Apache-2.0
// What device code is written in: function attributes, special registers and the base address of
// dynamic shared memory. The simulator replaces this file and every other file of kernels/ptx.
//
// Shared memory is addressed by 32-bit addresses of the shared window, never by pointer, so that
// every access goes through one of these wrappers.
#pragma once
#include <shared/types.h>

#define FP8GEMM_DEVICE __device__ __forceinline__
#define FP8GEMM_UNROLL _Pragma("unroll")

namespace fp8gemm::ptx {

FP8GEMM_DEVICE uint32_t thread_idx() { return threadIdx.x; }
FP8GEMM_DEVICE uint32_t block_idx() { return blockIdx.x; }
FP8GEMM_DEVICE uint32_t grid_dim() { return gridDim.x; }
FP8GEMM_DEVICE uint32_t lane_idx() { return threadIdx.x % 32; }

// Warp index within the CTA, made warp-uniform by a shuffle so that the compiler keeps what is
// derived from it in uniform registers.
FP8GEMM_DEVICE uint32_t warp_idx() { return __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); }

// Address of dynamic shared memory in the shared window. A launch without static shared memory
// gets it aligned to 1024 bytes.
FP8GEMM_DEVICE uint32_t dynamic_smem() {
  extern __shared__ __align__(1024) uint8_t fp8gemm_dynamic_smem[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(fp8gemm_dynamic_smem));
}

}  // namespace fp8gemm::ptx
