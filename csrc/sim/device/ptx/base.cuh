// SPDX-License-Identifier: Apache-2.0
// Simulator twin of kernels/ptx/base.cuh.
#pragma once
#include <shared/types.h>
#include <sim/device/entry_points.h>

#define FP8GEMM_DEVICE inline
#define FP8GEMM_UNROLL

namespace fp8gemm::ptx {

FP8GEMM_DEVICE uint32_t thread_idx() { return sim::ThreadIdx(); }
FP8GEMM_DEVICE uint32_t block_idx() { return sim::BlockIdx(); }
FP8GEMM_DEVICE uint32_t grid_dim() { return sim::GridDim(); }
FP8GEMM_DEVICE uint32_t lane_idx() { return sim::ThreadIdx() % 32; }
FP8GEMM_DEVICE uint32_t warp_idx() { return sim::ShflWarpIdx(); }
FP8GEMM_DEVICE uint32_t dynamic_smem() { return sim::DynamicSmem(); }

}  // namespace fp8gemm::ptx
