// SPDX-License-Identifier: Apache-2.0
// mbarrier: the phased barriers of the pipeline. One instruction per function, named after it.
//
// A phase completes when every expected arrival has come and every announced byte has landed. A
// wait names the parity of the phase it waits for; on a fresh barrier parity 1 passes at once.
// PTX ISA: "Parallel Synchronization and Communication Instructions: mbarrier", sm_90.
#pragma once
#include <ptx/base.cuh>

namespace fp8gemm::ptx {

// Makes `bar` expect `count` arrivals per phase. One thread, before fence_mbarrier_init.
FP8GEMM_DEVICE void mbarrier_init(uint32_t bar, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

// Orders this thread's mbarrier.init before later accesses by the cluster and by TMA.
FP8GEMM_DEVICE void fence_mbarrier_init_release_cluster() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives once and adds `tx_bytes` to what the current phase waits for. By the thread that issues
// the loads; the announced loads must sum to `tx_bytes` exactly, or the pipeline hangs.
FP8GEMM_DEVICE void mbarrier_arrive_expect_tx(uint32_t bar, uint32_t tx_bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(tx_bytes)
               : "memory");
}

// Arrives once; releases this thread's earlier writes to whoever waits.
FP8GEMM_DEVICE void mbarrier_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

// Arrives once on the barrier at the same address in CTA `cta_rank` of the cluster, which must not
// have exited, without a release to other CTAs: announces that this thread has finished reading.
FP8GEMM_DEVICE void mbarrier_arrive_cluster(uint32_t bar, uint32_t cta_rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(bar),
      "r"(cta_rank)
      : "memory");
}

// Waits until the phase of parity `parity` has completed (acquire, CTA scope).
FP8GEMM_DEVICE void mbarrier_wait_parity(uint32_t bar, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "wait_again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra wait_done;\n"
      "bra wait_again;\n"
      "wait_done:\n}" ::"r"(bar),
      "r"(parity)
      : "memory");
}

// The same with cluster scope: also acquires what other CTAs of the cluster have released.
FP8GEMM_DEVICE void mbarrier_wait_parity_cluster(uint32_t bar, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "wait_again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra wait_done;\n"
      "bra wait_again;\n"
      "wait_done:\n}" ::"r"(bar),
      "r"(parity)
      : "memory");
}

}  // namespace fp8gemm::ptx
