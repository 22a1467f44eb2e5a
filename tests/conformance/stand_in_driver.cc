// SPDX-License-Identifier: Apache-2.0
// A libcuda.so.1 over the simulator, with which the code that drives a real GPU is tested without
// one. STAND_IN_HANGS and STAND_IN_FAULTS name kernels that never return, or end the process.
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "driver/driver.h"

extern "C" const fp8gemm::DriverApi* Fp8GemmSimDriver();

namespace {

using namespace fp8gemm;

const DriverApi& Sim() { return *Fp8GemmSimDriver(); }

bool IsNamed(const char* variable, const char* kernel) {
  const char* value = std::getenv(variable);
  return value != nullptr && std::strcmp(value, kernel) == 0;
}

void* Pointer(uint64_t address) { return reinterpret_cast<void*>(address); }

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) CUresult

EXPORT cuInit(unsigned flags) { return Sim().cuInit(flags); }
EXPORT cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }
EXPORT cuDeviceGet(CUdevice* device, int) { return *device = 0, CUDA_SUCCESS; }
EXPORT cuDeviceGetName(char* name, int size_bytes, CUdevice) {
  std::strncpy(name, "stand-in", size_bytes);
  return CUDA_SUCCESS;
}
EXPORT cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  return Sim().cuDeviceGetAttribute(value, attribute, device);
}
EXPORT cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  return *context = nullptr, CUDA_SUCCESS;
}
EXPORT cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
EXPORT cuCtxSynchronize() { return CUDA_SUCCESS; }

EXPORT cuMemAlloc_v2(uint64_t* address, size_t size_bytes) {
  *address = reinterpret_cast<uint64_t>(std::aligned_alloc(256, (size_bytes + 255) / 256 * 256));
  return CUDA_SUCCESS;
}
EXPORT cuMemFree_v2(uint64_t address) { return std::free(Pointer(address)), CUDA_SUCCESS; }
EXPORT cuMemcpyHtoD_v2(uint64_t target, const void* source, size_t size_bytes) {
  return std::memcpy(Pointer(target), source, size_bytes), CUDA_SUCCESS;
}
EXPORT cuMemcpyDtoH_v2(void* target, uint64_t source, size_t size_bytes) {
  return std::memcpy(target, Pointer(source), size_bytes), CUDA_SUCCESS;
}

EXPORT cuLibraryLoadData(CUlibrary* library, const void* image, CUjit_option*, void**, unsigned,
                         CUlibraryOption*, void**, unsigned) {
  *library = nullptr;
  return std::memcmp(image,
                     "\x7f"
                     "ELF",
                     4) == 0
             ? CUDA_SUCCESS
             : CUDA_ERROR_INVALID_IMAGE;
}
EXPORT cuLibraryGetKernel(CUkernel* kernel, CUlibrary, const char* name) {
  if (IsNamed("STAND_IN_FAULTS", name)) std::_Exit(77);
  if (IsNamed("STAND_IN_HANGS", name)) {
    for (;;) pause();
  }
  const std::string image = std::string("fp8gemm-sim\n") + name + "\n";
  CUlibrary library = nullptr;
  const CUresult result =
      Sim().cuLibraryLoadData(&library, image.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0);
  return result == CUDA_SUCCESS ? Sim().cuLibraryGetKernel(kernel, library, name) : result;
}
EXPORT cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  return Sim().cuKernelGetFunction(function, kernel);
}
EXPORT cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  return Sim().cuFuncGetAttribute(value, attribute, function);
}
// As on an H100, whatever the kernel: the simulator knows clusters of the size a kernel has.
EXPORT cuOccupancyMaxActiveClusters(int* clusters, CUfunction, const CUlaunchConfig* config) {
  const unsigned size = config->attrs[0].value.clusterDim.x;
  *clusters = size == 8 ? 15 : size == 4 ? 31 : 132 / static_cast<int>(size);
  return CUDA_SUCCESS;
}
EXPORT cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel,
                            CUdevice device) {
  return Sim().cuKernelSetAttribute(attribute, value, kernel, device);
}
EXPORT cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** params,
                        void** extra) {
  const CUresult result = Sim().cuLaunchKernelEx(config, function, params, extra);
  const bool is_trap = result != CUDA_SUCCESS && std::strstr(Sim().last_report(), "a GPU traps");
  return is_trap ? static_cast<CUresult>(715) : result;  // illegal instruction
}
EXPORT cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, uint32_t rank, void* base,
                              const uint64_t* dims, const uint64_t* strides_bytes,
                              const uint32_t* box, const uint32_t* element_strides,
                              CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                              CUtensorMapL2promotion l2_promotion, CUtensorMapFloatOOBfill fill) {
  return Sim().cuTensorMapEncodeTiled(map, type, rank, base, dims, strides_bytes, box,
                                      element_strides, interleave, swizzle, l2_promotion, fill);
}
