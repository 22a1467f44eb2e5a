// SPDX-License-Identifier: Apache-2.0
// Where kernels run.
#pragma once
#include <string>

#include "driver/driver.h"

namespace fp8gemm {

/// Where kernels run: on a GPU through libcuda, or on the CPU through the simulator that stands for
/// it.
enum class Backend { kCuda, kSim };

/// "cuda" or "sim".
/// @throws UnsupportedError  Not one of those names.
Backend ParseBackend(const std::string& name);

/// The driver of a backend. @throws UnsupportedError  Its library cannot be loaded.
const DriverApi& Driver(Backend backend);

}  // namespace fp8gemm
