// SPDX-License-Identifier: Apache-2.0
// The simulator as a driver: one device of compute capability 9.0 behind driver/driver.h.
#include "driver/driver.h"

#include <pthread.h>

#include <cstdio>
#include <new>
#include <utility>

#include "sim/driver_state.h"

namespace fp8gemm::sim {
namespace {

// A forked child has neither the thread of a launch nor one that could unlock the mutex.
void ForgetOtherThreads() {
  DriverState& state = State();
  state.was_forked_in_launch |= state.is_launching;
  new (&state.mutex) std::mutex;
}

}  // namespace

DriverState& State() {
  static auto& state = *[] {  // leaked: threads of XLA may outlive static destruction
    pthread_atfork(nullptr, nullptr, &ForgetOtherThreads);
    return new DriverState;
  }();
  return state;
}

std::string& LastReport() {
  thread_local std::string report;
  return report;
}

CUresult Fail(CUresult code, std::string report) {
  LastReport() = std::move(report);
  return code;
}

namespace {

constexpr int kDriverVersion = 13000;
constexpr int kSmemPerBlockBytes = 232448;

struct ErrorText {
  CUresult code;
  const char* name;
  const char* text;
};

constexpr ErrorText kErrors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "kernel image is invalid"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
     "too many resources requested for launch"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_INVALID_CLUSTER_SIZE, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "invalid cluster size"},
};

const ErrorText* FindError(CUresult code) {
  for (const ErrorText& error : kErrors) {
    if (error.code == code) return &error;
  }
  return nullptr;
}

CUresult Init(unsigned) { return CUDA_SUCCESS; }

CUresult DriverGetVersion(int* version) {
  if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *version = kDriverVersion;
  return CUDA_SUCCESS;
}

CUresult GetErrorName(CUresult code, const char** name) {
  const ErrorText* const error = FindError(code);
  *name = error != nullptr ? error->name : nullptr;
  return error != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult GetErrorString(CUresult code, const char** text) {
  const ErrorText* const error = FindError(code);
  *text = error != nullptr ? error->text : nullptr;
  return error != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult CtxGetDevice(CUdevice* device) {
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult DeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device != 0) return Fail(CUDA_ERROR_INVALID_DEVICE, "the simulator has one device, 0");
  const std::lock_guard lock(State().mutex);
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = State().options.num_sms;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = kSmemPerBlockBytes;
      return CUDA_SUCCESS;
  }
  return Fail(CUDA_ERROR_INVALID_VALUE, "the simulator does not know device attribute " +
                                            std::to_string(static_cast<unsigned>(attribute)));
}

CUresult DeviceGetName(char* name, int size_bytes, CUdevice device) {
  if (name == nullptr || size_bytes <= 0) return CUDA_ERROR_INVALID_VALUE;
  if (device != 0) return Fail(CUDA_ERROR_INVALID_DEVICE, "the simulator has one device, 0");
  std::snprintf(name, static_cast<size_t>(size_bytes), "fp8gemm simulator (sm_90)");
  return CUDA_SUCCESS;
}

const char* GetLastReport() { return LastReport().c_str(); }

void SetInterrupts(uint64_t (*watch)(), bool (*was_interrupted)(uint64_t mark)) {
  const std::lock_guard lock(State().mutex);
  State().watch_interrupts = watch;
  State().was_interrupted = was_interrupted;
}

const DriverApi api = {
    .cuInit = Init,
    .cuDriverGetVersion = DriverGetVersion,
    .cuGetErrorName = GetErrorName,
    .cuGetErrorString = GetErrorString,
    .cuCtxGetDevice = CtxGetDevice,
    .cuDeviceGetAttribute = DeviceGetAttribute,
    .cuDeviceGetName = DeviceGetName,
    .cuLibraryLoadData = LibraryLoadData,
    .cuLibraryUnload = LibraryUnload,
    .cuLibraryGetKernel = LibraryGetKernel,
    .cuKernelGetFunction = KernelGetFunction,
    .cuFuncGetAttribute = FuncGetAttribute,
    .cuOccupancyMaxActiveClusters = OccupancyMaxActiveClusters,
    .cuKernelSetAttribute = KernelSetAttribute,
    .cuLaunchKernelEx = LaunchKernelEx,
    .cuTensorMapEncodeTiled = EncodeTiled,
    .last_report = GetLastReport,
    .set_interrupts = SetInterrupts,
};

}  // namespace
}  // namespace fp8gemm::sim

extern "C" {

FP8GEMM_SIM_EXPORT const fp8gemm::DriverApi* Fp8GemmSimDriver() { return &fp8gemm::sim::api; }

void Fp8GemmSimSetOptions(const fp8gemm::sim::SimOptions* options) {
  const std::lock_guard lock(fp8gemm::sim::State().mutex);
  fp8gemm::sim::State().options = *options;
}

void Fp8GemmSimGetOptions(fp8gemm::sim::SimOptions* options) {
  const std::lock_guard lock(fp8gemm::sim::State().mutex);
  *options = fp8gemm::sim::State().options;
}

void Fp8GemmSimGetStats(fp8gemm::sim::SimStats* stats) {
  const std::lock_guard lock(fp8gemm::sim::State().mutex);
  *stats = fp8gemm::sim::State().stats;
}

void Fp8GemmSimResetStats() {
  const std::lock_guard lock(fp8gemm::sim::State().mutex);
  fp8gemm::sim::State().stats = {};
}

void Fp8GemmSimSetGlobalRanges(const fp8gemm::sim::SimRange* ranges, uint64_t num_ranges) {
  const std::lock_guard lock(fp8gemm::sim::State().mutex);
  fp8gemm::sim::State().ranges.assign(ranges, ranges + num_ranges);
}
}
