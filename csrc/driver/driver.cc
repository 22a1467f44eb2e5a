// SPDX-License-Identifier: Apache-2.0
// Finds the driver entry points with dlopen and turns their result codes into exceptions.
#include "driver/driver.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>
#include <string>
#include <utility>

#include "driver/error.h"
#include "driver/fork_mutex.h"
#include "driver/interrupts.h"

namespace fp8gemm {
namespace {

template <typename Function>
void Resolve(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  if (function == nullptr) {
    throw UnsupportedError(std::string("The NVIDIA driver has no ") + name +
                           "; install driver 525 or newer.");
  }
}

// Never destroyed: threads of XLA may outlive static destruction.
ForkMutex& driver_mutex = *new ForkMutex;  // guards what follows
std::string& sim_library_path = *new std::string;
std::atomic<const DriverApi*> cuda_driver = nullptr;
std::atomic<const DriverApi*> sim_driver = nullptr;

/// The table that `driver` has, or else the one that `load` returns: once it does not throw.
template <typename Load>
const DriverApi& LoadedOnce(std::atomic<const DriverApi*>& driver, Load load) {
  if (const DriverApi* api = driver) return *api;
  const std::lock_guard lock(driver_mutex);
  if (driver == nullptr) driver = load();
  return *driver;
}

const DriverApi* LoadSimDriver() {
  const std::string& path = sim_library_path;
  if (path.empty()) {
    throw UnsupportedError(
        "The path of the CPU simulator library is not set; call "
        "SetSimLibraryPath before the first simulated kernel.");
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw UnsupportedError("The CPU simulator library cannot be loaded (" + LoaderError() +
                           "); reinstall jax_fp8gemm.");
  }
  using Entry = const DriverApi*();
  auto* entry = reinterpret_cast<Entry*>(dlsym(library, "Fp8GemmSimDriver"));
  const DriverApi* api = entry != nullptr ? entry() : nullptr;
  if (api == nullptr) {
    throw UnsupportedError(path + " is not the CPU simulator of jax_fp8gemm: Fp8GemmSimDriver is " +
                           "missing or returned nothing; reinstall jax_fp8gemm.");
  }
  Check(*api, api->cuInit(0), "cuInit");
  if (api->set_interrupts != nullptr) api->set_interrupts(&WatchInterrupts, &WasInterrupted);
  return api;
}

}  // namespace

std::string LoaderError() {
  const char* text = dlerror();
  return text != nullptr ? text : "unknown loader error";
}

DriverApi LoadCudaDriver(const std::string& library_name) {
  void* library = dlopen(library_name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw UnsupportedError("The NVIDIA driver library cannot be loaded (" + LoaderError() +
                           "); install an NVIDIA driver, or use implementation=\"xla\".");
  }
  DriverApi api{};
  Resolve(library, "cuInit", api.cuInit);
  Resolve(library, "cuDriverGetVersion", api.cuDriverGetVersion);
  Resolve(library, "cuGetErrorName", api.cuGetErrorName);
  Resolve(library, "cuGetErrorString", api.cuGetErrorString);
  Resolve(library, "cuCtxGetDevice", api.cuCtxGetDevice);
  Resolve(library, "cuDeviceGetAttribute", api.cuDeviceGetAttribute);
  Resolve(library, "cuDeviceGetName", api.cuDeviceGetName);
  Resolve(library, "cuLibraryLoadData", api.cuLibraryLoadData);
  Resolve(library, "cuLibraryUnload", api.cuLibraryUnload);
  Resolve(library, "cuLibraryGetKernel", api.cuLibraryGetKernel);
  Resolve(library, "cuKernelGetFunction", api.cuKernelGetFunction);
  Resolve(library, "cuFuncGetAttribute", api.cuFuncGetAttribute);
  Resolve(library, "cuOccupancyMaxActiveClusters", api.cuOccupancyMaxActiveClusters);
  Resolve(library, "cuKernelSetAttribute", api.cuKernelSetAttribute);
  Resolve(library, "cuLaunchKernelEx", api.cuLaunchKernelEx);
  Resolve(library, "cuTensorMapEncodeTiled", api.cuTensorMapEncodeTiled);
  const CUresult result = api.cuInit(0);
  if (result != CUDA_SUCCESS) {
    const char* name = nullptr;
    api.cuGetErrorName(result, &name);
    throw UnsupportedError(std::string("The NVIDIA driver finds no usable GPU (cuInit: ") +
                           (name != nullptr ? name : std::to_string(result)) +
                           "); check nvidia-smi and CUDA_VISIBLE_DEVICES.");
  }
  return api;
}

const DriverApi& CudaDriver() {
  return LoadedOnce(cuda_driver, [] { return new DriverApi(LoadCudaDriver("libcuda.so.1")); });
}

void SetSimLibraryPath(std::string path) {
  const std::lock_guard lock(driver_mutex);
  sim_library_path = std::move(path);
}

const DriverApi& SimDriver() { return LoadedOnce(sim_driver, &LoadSimDriver); }

Backend ParseBackend(const std::string& name) {
  if (name == "cuda") return Backend::kCuda;
  if (name == "sim") return Backend::kSim;
  throw UnsupportedError("backend must be cuda or sim, got '" + name + "'");
}

void Check(const DriverApi& api, CUresult result, const char* call) {
  if (result == CUDA_SUCCESS) return;
  const char* name = nullptr;
  const char* text = nullptr;
  api.cuGetErrorName(result, &name);
  api.cuGetErrorString(result, &text);
  std::string description = text != nullptr ? text : "no description";
  const char* report = api.last_report != nullptr ? api.last_report() : nullptr;
  if (report != nullptr && *report != '\0') {
    if (result == CUDA_ERROR_NOT_SUPPORTED) throw UnsupportedError(report);
    description += '\n';
    description += report;
  }
  throw CudaError(std::string(call) + " failed with " + (name != nullptr ? name : "unknown error") +
                  " (" + std::to_string(result) + "): " + description);
}

}  // namespace fp8gemm
