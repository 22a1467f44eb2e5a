// SPDX-License-Identifier: Apache-2.0
// The kernels that the simulator can run, by the key that a kernel image names.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "sim/options.h"

namespace fp8gemm::sim {

struct SimKernel {
  const char* key;
  void (*entry)(const void* params);  // run by every simulated thread
  uint32_t params_bytes;              // size of the kernel's single parameter
  uint32_t threads;                   // per CTA, a multiple of 128
  uint32_t cluster;                   // CTAs per cluster
  uint32_t smem_bytes;                // dynamic shared memory the kernel addresses
  uint32_t launch_registers;          // per thread at launch; setmaxnreg redistributes the sum
  // Name of what lies at an offset of dynamic shared memory, for reports; may be nullptr.
  const char* (*describe_smem)(uint32_t offset);
};

/// Adds a table of kernels to the registry during static initialization of its library, which must
/// never be closed.
class FP8GEMM_SIM_EXPORT KernelTable {
 public:
  KernelTable(const SimKernel* kernels, size_t num_kernels);

  template <size_t kCount>
  explicit KernelTable(const SimKernel (&kernels)[kCount]) : KernelTable(kernels, kCount) {}

  KernelTable(const KernelTable&) = delete;  // the registry holds its address
  KernelTable& operator=(const KernelTable&) = delete;

 private:
  friend const SimKernel* FindRegistered(const char* key);

  const SimKernel* kernels_;
  size_t num_kernels_;
  const KernelTable* next_;
};

/// Returns the kernel of `key`, or nullptr. If no table that is linked in has it, loads the library
/// of kernels that lies beside this one, once.
const SimKernel* FindKernel(const char* key);

/// Why there is no kernel at all: that library is missing. Empty where there are kernels.
std::string MissingKernels();

}  // namespace fp8gemm::sim
