// SPDX-License-Identifier: Apache-2.0
// Reads device attributes, and refuses everything that is not Hopper.
#include "driver/device_limits.h"

#include <string>

#include "driver/error.h"

namespace fp8gemm {
namespace {

int Attribute(const DriverApi& api, CUdevice device, CUdevice_attribute attribute) {
  int value = 0;
  Check(api, api.cuDeviceGetAttribute(&value, attribute, device), "cuDeviceGetAttribute");
  return value;
}

}  // namespace

DeviceLimits ReadLimits(const DriverApi& api, CUdevice device) {
  char name[256] = {};
  Check(api, api.cuDeviceGetName(name, sizeof(name) - 1, device), "cuDeviceGetName");
  DeviceLimits limits;
  limits.ordinal = device;
  limits.name = name;
  limits.cc_major = Attribute(api, device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  limits.cc_minor = Attribute(api, device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  if (limits.cc_major != 9 || limits.cc_minor != 0) {
    throw UnsupportedError(
        "Device " + std::to_string(device) + " (" + limits.name + ") has compute capability " +
        std::to_string(limits.cc_major) + "." + std::to_string(limits.cc_minor) +
        ", but the kernels are built for sm_90a and run on 9.0 only (H100, H200, GH200); use " +
        "implementation=\"xla\" on this device.");
  }
  limits.sm_count = Attribute(api, device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  limits.smem_bytes_per_block =
      Attribute(api, device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  return limits;
}

}  // namespace fp8gemm
