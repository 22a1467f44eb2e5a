// SPDX-License-Identifier: Apache-2.0
// The registry is a list through the static tables themselves: nothing is allocated before main.
#include "sim/registry.h"

#include <dlfcn.h>

#include <atomic>
#include <cstring>

namespace fp8gemm::sim {
namespace {

// Zero-initialized before any dynamic initialization, so tables may be constructed in any order.
std::atomic<const KernelTable*> first_table = nullptr;

constexpr char kLibraryName[] = "libjax_fp8gemm_sim_kernels.so";

/// Loads the library of kernels, which registers its tables. Returns why it cannot be loaded.
std::string LoadKernels() {
  Dl_info info = {};
  if (dladdr(&first_table, &info) == 0 || info.dli_fname == nullptr) return "no path";
  const std::string path = info.dli_fname;
  const std::string library = path.substr(0, path.rfind('/') + 1) + kLibraryName;
  if (dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL) != nullptr) return "";
  return dlerror();
}

const std::string& LoadFailure() {
  static const auto& failure = *new std::string(LoadKernels());
  return failure;
}

}  // namespace

KernelTable::KernelTable(const SimKernel* kernels, size_t num_kernels)
    : kernels_(kernels), num_kernels_(num_kernels), next_(first_table.load()) {
  first_table = this;  // the loader runs one static initialization at a time
}

const SimKernel* FindRegistered(const char* key) {
  for (const KernelTable* table = first_table; table != nullptr; table = table->next_) {
    for (size_t i = 0; i < table->num_kernels_; ++i) {
      if (std::strcmp(table->kernels_[i].key, key) == 0) return &table->kernels_[i];
    }
  }
  return nullptr;
}

const SimKernel* FindKernel(const char* key) {
  if (const SimKernel* kernel = FindRegistered(key)) return kernel;
  return LoadFailure().empty() ? FindRegistered(key) : nullptr;
}

std::string MissingKernels() {
  if (first_table != nullptr) return "";
  return "this build of jax_fp8gemm has the simulator without its kernels (" + LoadFailure() +
         "); build them with `make develop` or `make test`, or with pip and "
         "-Ccmake.define.FP8GEMM_SIM_KERNELS=ON, or use implementation=\"xla\"";
}

}  // namespace fp8gemm::sim
