// SPDX-License-Identifier: Apache-2.0
// Driver entry points found at run time: NVIDIA's libcuda, or the simulator that stands for it.
#pragma once
#include <string>

#include "driver/driver_types.h"

namespace fp8gemm {

/// The driver functions the library calls. One table per driver; immutable once published.
struct DriverApi {
  CUresult (*cuInit)(unsigned flags);
  CUresult (*cuDriverGetVersion)(int* version);
  CUresult (*cuGetErrorName)(CUresult error, const char** name);
  CUresult (*cuGetErrorString)(CUresult error, const char** text);
  CUresult (*cuCtxGetDevice)(CUdevice* device);
  CUresult (*cuDeviceGetAttribute)(int* value, CUdevice_attribute attribute, CUdevice device);
  CUresult (*cuDeviceGetName)(char* name, int size_bytes, CUdevice device);
  CUresult (*cuLibraryLoadData)(CUlibrary* library, const void* image, CUjit_option* jit_options,
                                void** jit_values, unsigned num_jit_options,
                                CUlibraryOption* library_options, void** library_values,
                                unsigned num_library_options);
  CUresult (*cuLibraryUnload)(CUlibrary library);
  CUresult (*cuLibraryGetKernel)(CUkernel* kernel, CUlibrary library, const char* name);
  CUresult (*cuKernelGetFunction)(CUfunction* function, CUkernel kernel);
  CUresult (*cuFuncGetAttribute)(int* value, CUfunction_attribute attribute, CUfunction function);
  CUresult (*cuOccupancyMaxActiveClusters)(int* clusters, CUfunction function,
                                           const CUlaunchConfig* config);
  CUresult (*cuKernelSetAttribute)(CUfunction_attribute attribute, int value, CUkernel kernel,
                                   CUdevice device);
  CUresult (*cuLaunchKernelEx)(const CUlaunchConfig* config, CUfunction function, void** params,
                               void** extra);
  CUresult (*cuTensorMapEncodeTiled)(CUtensorMap* map, CUtensorMapDataType type, uint32_t rank,
                                     void* base, const uint64_t* dims,
                                     const uint64_t* strides_bytes, const uint32_t* box,
                                     const uint32_t* element_strides,
                                     CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                     CUtensorMapL2promotion l2_promotion,
                                     CUtensorMapFloatOOBfill fill);

  /// Simulator only, else nullptr: what the calling thread's last failed call found.
  const char* (*last_report)();
  /// Simulator only, else nullptr: takes the functions by which launches look for Ctrl-C, see
  /// driver/interrupts.h.
  void (*set_interrupts)(uint64_t (*watch)(), bool (*was_interrupted)(uint64_t mark));
};

/// NVIDIA's driver, loaded and initialized on first use. A failure is not remembered: the next
/// call tries again.
///
/// @throws UnsupportedError  No driver, a driver without an entry point, or no usable GPU.
const DriverApi& CudaDriver();

/// As `CudaDriver`, from a named library; uncached.
DriverApi LoadCudaDriver(const std::string& library);

/// Path of the simulator's shared library; takes effect if `SimDriver` has not succeeded yet.
void SetSimLibraryPath(std::string path);

/// The CPU simulator behind the same table, loaded on first use.
///
/// @throws UnsupportedError  The path is not set, or the library cannot be loaded.
const DriverApi& SimDriver();

/// Why the loader of shared libraries last failed.
std::string LoaderError();

/// Where kernels run: on a GPU through libcuda, or on the CPU through the simulator.
enum class Backend { kCuda, kSim };

/// "cuda" or "sim".
/// @throws UnsupportedError  Not one of those names.
Backend ParseBackend(const std::string& name);

/// Throws `CudaError` unless `result` is success; `UnsupportedError` where the simulator reports
/// that a part of it is missing.
///
/// @param call  Name of the driver function that returned `result`.
void Check(const DriverApi& api, CUresult result, const char* call);

}  // namespace fp8gemm
