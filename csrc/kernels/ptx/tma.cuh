// SPDX-License-Identifier: Apache-2.0
// TMA: asynchronous copies of boxes between global tensors and shared memory. One instruction per
// function, named after it (g2s: global to shared, s2g: shared to global).
//
// Coordinates are in elements, innermost first; a start outside the tensor is legal. Loads fill
// what lies outside with zeros and still count the whole box on the mbarrier; stores clip.
// PTX ISA: "Data Movement and Conversion Instructions: cp.async.bulk.tensor", sm_90.
#pragma once
#include <ptx/base.cuh>
#include <shared/gemm_params.h>

namespace fp8gemm::ptx {

// Brings a tensor map (a kernel parameter) into the descriptor cache.
FP8GEMM_DEVICE void prefetch_tensormap(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Loads one box to `dst` and completes its bytes on `bar`, both of this CTA. One elected thread.
FP8GEMM_DEVICE void cp_async_bulk_tensor_2d_g2s(const TensorMap* map, uint32_t bar, uint32_t dst,
                                                int32_t x, int32_t y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(dst),
      "l"(map), "r"(bar), "r"(x), "r"(y)
      : "memory");
}

// Loads one box to the same offset of every CTA whose bit is set in `cta_mask`, and completes its
// bytes on the mbarrier at the same offset in each. The slot must be free in all of them.
FP8GEMM_DEVICE void cp_async_bulk_tensor_2d_g2s_multicast(const TensorMap* map, uint32_t bar,
                                                          uint32_t dst, int32_t x, int32_t y,
                                                          uint16_t cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(dst),
      "l"(map), "r"(bar), "r"(x), "r"(y), "h"(cta_mask)
      : "memory");
}

// Stores one box from `src`. Generic writes to it need fence_proxy_async_shared_cta by their
// writers first. Completion is tracked per issuing thread: commit and wait there.
FP8GEMM_DEVICE void cp_async_bulk_tensor_2d_s2g(const TensorMap* map, uint32_t src, int32_t x,
                                                int32_t y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(src), "r"(x), "r"(y)
      : "memory");
}

// Closes the group of stores this thread has issued since the last commit.
FP8GEMM_DEVICE void cp_async_bulk_commit_group() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until all but the `kPending` newest groups of this thread have read their shared memory.
template <int kPending>
FP8GEMM_DEVICE void cp_async_bulk_wait_group_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Makes this thread's earlier generic writes to shared memory visible to asynchronous copies.
FP8GEMM_DEVICE void fence_proxy_async_shared_cta() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace fp8gemm::ptx
