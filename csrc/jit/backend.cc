// SPDX-License-Identifier: Apache-2.0
// The names and the drivers of the two backends.
#include "jit/backend.h"

#include "driver/error.h"

namespace fp8gemm {

Backend ParseBackend(const std::string& name) {
  if (name == "cuda") return Backend::kCuda;
  if (name == "sim") return Backend::kSim;
  throw UnsupportedError("backend must be cuda or sim, got '" + name + "'");
}

const DriverApi& Driver(Backend backend) {
  return backend == Backend::kSim ? SimDriver() : CudaDriver();
}

}  // namespace fp8gemm
