// SPDX-License-Identifier: Apache-2.0
// Prints our descriptor of a K-major operand at address 0, for each K step of a K block.
#include <mma/smem_descriptor.cuh>

#include <cstdio>

#include "shared/gemm_config.h"

int main() {
  using namespace fp8gemm;
  for (uint32_t k = 0; k < kBlockK; k += kMmaK) {
    const uint64_t descriptor = make_k_major_descriptor(descriptor_start(0)) + descriptor_offset(k);
    std::printf("%lu\n", static_cast<unsigned long>(descriptor));
  }
}
