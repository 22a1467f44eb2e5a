// SPDX-License-Identifier: Apache-2.0
// Where kernels run.
#pragma once
#include "runtime/driver.h"

namespace fp8gemm {

/// Where kernels run: on a GPU through libcuda, or on the CPU through the simulator that stands for
/// it.
enum class Backend { kCuda, kSim };

/// The driver of a backend. @throws UnsupportedError  Its library cannot be loaded.
const DriverApi& Driver(Backend backend);

}  // namespace fp8gemm
