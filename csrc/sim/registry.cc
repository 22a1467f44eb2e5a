// SPDX-License-Identifier: Apache-2.0
// The registry is a list through the static tables themselves: nothing is allocated before main.
#include "sim/registry.h"

#include <cstring>

namespace fp8gemm::sim {
namespace {

// Zero-initialised before any dynamic initialisation, so tables may be constructed in any order.
const KernelTable* first_table = nullptr;

}  // namespace

KernelTable::KernelTable(const SimKernel* kernels, size_t num_kernels)
    : kernels_(kernels), num_kernels_(num_kernels), next_(first_table) {
  first_table = this;
}

const SimKernel* FindKernel(const char* key) {
  for (const KernelTable* table = first_table; table != nullptr; table = table->next_) {
    for (size_t i = 0; i < table->num_kernels_; ++i) {
      if (std::strcmp(table->kernels_[i].key, key) == 0) return &table->kernels_[i];
    }
  }
  return nullptr;
}

}  // namespace fp8gemm::sim
