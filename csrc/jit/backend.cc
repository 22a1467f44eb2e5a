// SPDX-License-Identifier: Apache-2.0
// The drivers of the two backends.
#include "jit/backend.h"

namespace fp8gemm {

const DriverApi& Driver(Backend backend) {
  return backend == Backend::kSim ? SimDriver() : CudaDriver();
}

}  // namespace fp8gemm
