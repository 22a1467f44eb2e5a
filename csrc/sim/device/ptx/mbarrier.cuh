// SPDX-License-Identifier: Apache-2.0
// Simulator twin of kernels/ptx/mbarrier.cuh.
#pragma once
#include <ptx/base.cuh>

namespace fp8gemm::ptx {

FP8GEMM_DEVICE void mbarrier_init(uint32_t bar, uint32_t count) { sim::MbarrierInit(bar, count); }
FP8GEMM_DEVICE void fence_mbarrier_init_release_cluster() { sim::FenceMbarrierInit(); }
FP8GEMM_DEVICE void mbarrier_arrive_expect_tx(uint32_t bar, uint32_t tx_bytes) {
  sim::MbarrierArriveExpectTx(bar, tx_bytes);
}
FP8GEMM_DEVICE void mbarrier_arrive(uint32_t bar) { sim::MbarrierArrive(bar); }
FP8GEMM_DEVICE void mbarrier_arrive_cluster(uint32_t bar, uint32_t cta_rank) {
  sim::MbarrierArriveCluster(bar, cta_rank);
}
FP8GEMM_DEVICE void mbarrier_wait_parity(uint32_t bar, uint32_t parity) {
  sim::MbarrierWaitParity(bar, parity);
}
FP8GEMM_DEVICE void mbarrier_wait_parity_cluster(uint32_t bar, uint32_t parity) {
  sim::MbarrierWaitParityCluster(bar, parity);
}

}  // namespace fp8gemm::ptx
