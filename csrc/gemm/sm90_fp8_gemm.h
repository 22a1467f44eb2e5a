// SPDX-License-Identifier: Apache-2.0
// Host twin of kernels/fp8_gemm/sm90_fp8_gemm.cuh: what NVRTC compiles, its parameter and its grid.
#pragma once
#include "gemm/problem.h"
#include "jit/kernel.h"
#include "shared/gemm_params.h"

namespace fp8gemm {

/// Device addresses of one call. Pitches are those of the problem.
struct GemmBuffers {
  void* a = nullptr;    // (a rows, k) fp8, rows `k_pitch` elements apart
  void* b = nullptr;    // (b rows, k) fp8, rows `k_pitch` elements apart
  void* sfa = nullptr;  // (ceil(k / 128), a rows) f32, rows `sfa_pitch` elements apart
  // 1d2d: (groups, ceil(n / 128), ceil(k / 128)) f32.
  // 1d1d: (ceil(k / 128), n) f32, rows `sfb_pitch` elements apart.
  void* sfb = nullptr;
  void* d = nullptr;           // (d rows, n) output, rows `d_pitch` elements apart
  void* c = nullptr;           // as d; may be d itself; nullptr unless the problem accumulates
  void* group_data = nullptr;  // (group_data_size) int32; nullptr if there is none
};

/// The kernel of a configuration; its entry point is e.g. "sm90_fp8_gemm_1d2d_ragged".
KernelSource GemmKernel(const GemmConfig& config);

/// The kernel's argument. Encodes the tensor maps; touches no device memory.
GemmParams MakeGemmParams(const DriverApi& api, const GemmProblem& problem,
                          const GemmConfig& config, const GemmBuffers& buffers,
                          int64_t max_clusters);

/// The number of CTAs: those of at most `max_clusters` clusters, and of no more than there are
/// tiles. With split K it is a cluster for each tile.
unsigned Grid(const GemmProblem& problem, const GemmConfig& config, int64_t max_clusters);

}  // namespace fp8gemm
