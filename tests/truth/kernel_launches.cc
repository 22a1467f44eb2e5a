// SPDX-License-Identifier: Apache-2.0
// Launches through the simulated driver. Apart from what includes CuTe, which brings cuda.h: its
// names are those of driver_types.h.
#include "kernel_launches.h"

#include <dlfcn.h>

#include <string>

#include "driver/error.h"
#include "gemm/config_key.h"
#include "sim/options.h"

namespace truth {

void LaunchKernel(const DriverApi& api, const GemmConfig& config, const GemmProblem& problem,
                  Operands& operands) {
  const unsigned cluster = config.cluster_size();
  const int64_t clusters = max<int64_t>(1, kNumSms / cluster);
  GemmParams params = MakeGemmParams(api, problem, config, operands.buffers, clusters);
  const std::string image = "fp8gemm-sim\n" + ConfigKey(config) + "\n";
  CUlibrary library;
  CUkernel kernel;
  CUfunction function;
  Check(api,
        api.cuLibraryLoadData(&library, image.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0),
        "cuLibraryLoadData");
  Check(api, api.cuLibraryGetKernel(&kernel, library, "kernel"), "cuLibraryGetKernel");
  Check(api, api.cuKernelGetFunction(&function, kernel), "cuKernelGetFunction");
  const unsigned smem_bytes = launch_smem_bytes(config);
  Check(api,
        api.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, smem_bytes,
                                 kernel, 0),
        "cuKernelSetAttribute");
  CUlaunchAttribute attribute{};
  attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
  attribute.value.clusterDim = {cluster, 1, 1};
  CUlaunchConfig launch{};
  launch.gridDimX = Grid(problem, config, clusters);
  launch.gridDimY = launch.gridDimZ = launch.blockDimY = launch.blockDimZ = 1;
  launch.blockDimX = config.threads();
  launch.sharedMemBytes = smem_bytes;
  launch.attrs = &attribute;
  launch.numAttrs = 1;
  void* kernel_params[] = {&params};
  Check(api, api.cuLaunchKernelEx(&launch, function, kernel_params, nullptr), "cuLaunchKernelEx");
  Check(api, api.cuLibraryUnload(library), "cuLibraryUnload");
}

const DriverApi& QuietSimulator(const char* library) {
  SetSimLibraryPath(library);
  const DriverApi& api = SimDriver();
  void* const set_options = dlsym(dlopen(library, RTLD_NOW), "Fp8GemmSimSetOptions");
  const sim::SimOptions options{.timing = sim::kTimingEarly,
                                .scheduler = sim::kSchedulerLifo,
                                .shadow = sim::kShadowOff,
                                .num_sms = kNumSms};
  reinterpret_cast<decltype(&Fp8GemmSimSetOptions)>(set_options)(&options);
  return api;
}

}  // namespace truth
