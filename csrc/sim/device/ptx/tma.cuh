// SPDX-License-Identifier: Apache-2.0
// Simulator twin of kernels/ptx/tma.cuh.
#pragma once
#include <ptx/base.cuh>
#include <shared/gemm_params.h>

namespace fp8gemm::ptx {

FP8GEMM_DEVICE void prefetch_tensormap(const TensorMap* map) { sim::PrefetchTensorMap(map); }
FP8GEMM_DEVICE void cp_async_bulk_tensor_2d_g2s(const TensorMap* map, uint32_t bar, uint32_t dst,
                                                int32_t x, int32_t y) {
  sim::TmaLoad2d(map, bar, dst, x, y);
}
FP8GEMM_DEVICE void cp_async_bulk_tensor_2d_g2s_multicast(const TensorMap* map, uint32_t bar,
                                                          uint32_t dst, int32_t x, int32_t y,
                                                          uint16_t cta_mask) {
  sim::TmaLoad2dMulticast(map, bar, dst, x, y, cta_mask);
}
FP8GEMM_DEVICE void cp_async_bulk_tensor_2d_s2g(const TensorMap* map, uint32_t src, int32_t x,
                                                int32_t y) {
  sim::TmaStore2d(map, src, x, y);
}
FP8GEMM_DEVICE void cp_async_bulk_commit_group() { sim::BulkCommitGroup(); }
template <int kPending>
FP8GEMM_DEVICE void cp_async_bulk_wait_group_read() {
  sim::BulkWaitGroupRead(kPending);
}
FP8GEMM_DEVICE void fence_proxy_async_shared_cta() { sim::FenceProxyAsync(); }

}  // namespace fp8gemm::ptx
