// SPDX-License-Identifier: Apache-2.0
// What the parts of the simulated driver share.
#pragma once
#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "driver/driver_types.h"
#include "sim/options.h"

namespace fp8gemm::sim {

struct DriverState {
  std::mutex mutex;  // guards all of it, and the engine
  SimOptions options;
  SimStats stats = {};
  std::vector<SimRange> ranges;
  // Of Ctrl-C: a mark of now, and whether it came since a mark. Set before the first launch.
  uint64_t (*watch_interrupts)() = [] { return uint64_t{0}; };
  bool (*was_interrupted)(uint64_t mark) = [](uint64_t) { return false; };
  std::atomic<bool> is_launching = false;
  bool was_forked_in_launch = false;  // by another thread, and so nothing can run here any more
};

DriverState& State();

/// What the calling thread's last failed call found; `Fail` sets it.
std::string& LastReport();

/// Returns `code` after storing the report.
CUresult Fail(CUresult code, std::string report);

CUresult EncodeTiled(CUtensorMap* map, CUtensorMapDataType type, uint32_t rank, void* base,
                     const uint64_t* dims, const uint64_t* strides_bytes, const uint32_t* box,
                     const uint32_t* element_strides, CUtensorMapInterleave interleave,
                     CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2_promotion,
                     CUtensorMapFloatOOBfill fill);

CUresult LibraryLoadData(CUlibrary* library, const void* image, CUjit_option* jit_options,
                         void** jit_values, unsigned num_jit_options,
                         CUlibraryOption* library_options, void** library_values,
                         unsigned num_library_options);
CUresult LibraryUnload(CUlibrary library);
CUresult LibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name);
CUresult KernelGetFunction(CUfunction* function, CUkernel kernel);
CUresult FuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function);
CUresult OccupancyMaxActiveClusters(int* clusters, CUfunction function,
                                    const CUlaunchConfig* config);
CUresult KernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel,
                            CUdevice device);
CUresult LaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** params,
                        void** extra);

}  // namespace fp8gemm::sim
