// SPDX-License-Identifier: Apache-2.0
// A driver that records its calls, and fails where it is told to.
#pragma once
#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "checks.h"
#include "driver/driver.h"

namespace fp8gemm {
namespace {

/// State and call record of the fake driver.
struct Fake {
  CUresult result = CUDA_SUCCESS;  // of the calls that can be made to fail
  CUdevice device = 0;
  int cc_major = 9;
  int sm_count = 132;
  const char* report = nullptr;
  int driver_version = 12080;
  CUresult load_result = CUDA_SUCCESS;
  CUresult get_function_result = CUDA_SUCCESS;
  CUresult get_attribute_result = CUDA_SUCCESS;
  int max_clusters = 1;
  std::atomic<int> loads = 0;
  std::atomic<int> unloads = 0;
  std::atomic<int> resolves = 0;
  std::atomic<int> code_loads = 0;
  int smem_bytes = 0;
  std::string image;
  CUlaunchConfig config{};
  std::vector<CUlaunchAttribute> attributes;
  void* param = nullptr;
  std::vector<uint64_t> map;  // arguments of cuTensorMapEncodeTiled, in order
};
Fake fake;
thread_local CUdevice thread_device = -1;  // overrides fake.device

template <typename Handle>
Handle HandleOf(uintptr_t value) {
  return reinterpret_cast<Handle>(value);
}

void FillDeviceCalls(DriverApi& api) {
  api.cuInit = [](unsigned) { return fake.result; };
  api.cuDriverGetVersion = [](int* version) {
    *version = fake.driver_version;
    return CUDA_SUCCESS;
  };
  api.cuGetErrorName = [](CUresult error, const char** name) {
    *name = error == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : nullptr;
    return error == CUDA_ERROR_INVALID_VALUE ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  };
  api.cuGetErrorString = [](CUresult error, const char** text) {
    *text = error == CUDA_ERROR_INVALID_VALUE ? "invalid argument" : nullptr;
    return error == CUDA_ERROR_INVALID_VALUE ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  };
  api.cuCtxGetDevice = [](CUdevice* device) {
    *device = thread_device >= 0 ? thread_device : fake.device;
    return fake.result;
  };
  api.cuDeviceGetAttribute = [](int* value, CUdevice_attribute attribute, CUdevice device) {
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR   ? fake.cc_major
             : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? 0
             : attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT     ? fake.sm_count - device
                                                                         : 232448;
    return CUDA_SUCCESS;
  };
  api.cuDeviceGetName = [](char* name, int bytes, CUdevice) {
    std::strncpy(name, "Fake H100", static_cast<size_t>(bytes));
    return CUDA_SUCCESS;
  };
  api.last_report = [] { return fake.report; };
}

void FillKernelCalls(DriverApi& api) {
  api.cuLibraryLoadData = [](CUlibrary* library, const void* image, CUjit_option*, void**, unsigned,
                             CUlibraryOption*, void**, unsigned) {
    ++fake.loads;
    fake.image = static_cast<const char*>(image);
    *library = HandleOf<CUlibrary>(0x10);  // even when it fails, as a driver may
    return fake.load_result;
  };
  api.cuLibraryUnload = [](CUlibrary) {
    ++fake.unloads;
    return CUDA_SUCCESS;
  };
  api.cuLibraryGetKernel = [](CUkernel* kernel, CUlibrary, const char* name) {
    *kernel = HandleOf<CUkernel>(0x20);
    return std::strcmp(name, "tiny") == 0 ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
  };
  api.cuKernelSetAttribute = [](CUfunction_attribute attribute, int value, CUkernel, CUdevice) {
    CHECK(attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
    fake.smem_bytes = value;
    return CUDA_SUCCESS;
  };
  api.cuKernelGetFunction = [](CUfunction* function, CUkernel) {
    ++fake.resolves;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // lets other first uses pile up
    const CUdevice device = thread_device >= 0 ? thread_device : fake.device;
    *function = HandleOf<CUfunction>(0x1000 + static_cast<uintptr_t>(device));
    return fake.get_function_result;
  };
  api.cuFuncGetAttribute = [](int* value, CUfunction_attribute attribute, CUfunction) {
    CHECK(attribute == CU_FUNC_ATTRIBUTE_NUM_REGS);
    ++fake.code_loads;
    *value = 168;
    return fake.get_attribute_result;
  };
  api.cuOccupancyMaxActiveClusters = [](int* clusters, CUfunction, const CUlaunchConfig* config) {
    CHECK(config->numAttrs == 1 && config->attrs[0].id == 4 && config->blockDimX == 128);
    CHECK(config->gridDimX == config->attrs[0].value.clusterDim.x);
    *clusters = fake.max_clusters;
    return CUDA_SUCCESS;
  };
  api.cuLaunchKernelEx = [](const CUlaunchConfig* config, CUfunction, void** params, void** extra) {
    CHECK(extra == nullptr && (config->attrs != nullptr) == (config->numAttrs != 0));
    fake.config = *config;
    fake.attributes.assign(config->attrs, config->attrs + config->numAttrs);
    fake.param = params[0];
    return fake.result;
  };
}

void FillTensorMapCalls(DriverApi& api) {
  api.cuTensorMapEncodeTiled = [](CUtensorMap* map, CUtensorMapDataType type, uint32_t rank,
                                  void* base, const uint64_t* dims, const uint64_t* strides,
                                  const uint32_t* box, const uint32_t* steps,
                                  CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                  CUtensorMapL2promotion l2, CUtensorMapFloatOOBfill fill) {
    map->opaque[15] = 42;
    fake.map = {type,     rank,       reinterpret_cast<uintptr_t>(base),
                dims[0],  dims[1],    strides[0],
                box[0],   box[1],     steps[0],
                steps[1], interleave, swizzle,
                l2,       fill};
    return fake.result;
  };
}

const DriverApi api = [] {
  DriverApi table{};
  FillDeviceCalls(table);
  FillKernelCalls(table);
  FillTensorMapCalls(table);
  return table;
}();

}  // namespace
}  // namespace fp8gemm
