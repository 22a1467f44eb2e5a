// SPDX-License-Identifier: Apache-2.0
// What a device offers to a kernel: compute capability, SM count, shared memory.
#pragma once
#include <string>

#include "driver/driver.h"

namespace fp8gemm {

struct DeviceLimits {
  int ordinal = 0;
  int sm_count = 0;              // of the MIG slice if there is one
  int smem_bytes_per_block = 0;  // opt-in maximum of dynamic shared memory
  int cc_major = 0;
  int cc_minor = 0;
  std::string name;
};

/// Asks the driver for the limits of a device.
///
/// @throws UnsupportedError  The device is not of compute capability 9.0.
DeviceLimits ReadLimits(const DriverApi& api, CUdevice device);

}  // namespace fp8gemm
