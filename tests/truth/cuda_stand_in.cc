// SPDX-License-Identifier: Apache-2.0
// A libcuda.so.1 in the types of NVIDIA's cuda.h, for programs that want a GPU where there is none.
//
// It refuses what a driver refuses, remembers every launch, and knows which device is current on a
// thread. STAND_IN_FAULT names what it forgets, to show that callers notice: "shared_memory" (of
// cuKernelSetAttribute) or "device" (functions are those of device 0). Or, to show that sanitizers
// do: "lock" (of what all launches change) or "size" (of a map in the caller's memory).
#include <cuda.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int kDevices = 3;
constexpr int kSms[kDevices] = {132, 114, 78};
constexpr int kDefaultSmemBytes = 48 * 1024;
constexpr int kOptInSmemBytes = 232448;
constexpr uint64_t kMapMagic = 0x70616d20656e6f6e;
constexpr unsigned kMapWords = sizeof(CUtensorMap) / 8;

struct Kernel;
struct Function {
  Kernel* kernel;
  int device;
};
struct Kernel {
  std::string name;
  int smem_bytes[kDevices];
  Function functions[kDevices];
};

// As Python reads it.
struct Launch {
  int device;
  unsigned grid[3], block[3], cluster[3];
  unsigned smem_bytes, pdl;
  uint64_t stream;
  // The first words of the parameter; of a product the bases of its six tensor maps, 0 for those
  // that were not encoded, and the words behind them.
  uint64_t words[10];
  char name[64];
};

std::mutex mutex;
std::deque<Kernel> kernels;
std::vector<Launch> launches;
int loads, launches_seen;
thread_local int current_device = -1;

bool Forgets(const char* what) {
  const char* fault = std::getenv("STAND_IN_FAULT");
  return fault != nullptr && std::strcmp(fault, what) == 0;
}

// As long as a driver may take, so that threads are inside their handlers at the same time: Python
// lets one in after the other, which a sanitizer would take for their order.
void TakeTime() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

// Streams that a test makes carry their device.
int DeviceOf(CUstream stream) { return int(reinterpret_cast<uintptr_t>(stream) >> 16); }

CUresult ReadAttributes(const CUlaunchConfig& config, Launch& launch) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const CUlaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
      const auto& dims = attribute.value.clusterDim;
      launch.cluster[0] = dims.x;
      launch.cluster[1] = dims.y;
      launch.cluster[2] = dims.z;
    } else if (attribute.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) {
      launch.pdl = attribute.value.programmaticStreamSerializationAllowed;
    } else {
      return CUDA_ERROR_INVALID_VALUE;
    }
  }
  return CUDA_SUCCESS;
}

CUresult ReadParameter(const char* parameter, Launch& launch) {
  const bool has_maps = std::strstr(launch.name, "gemm") != nullptr;
  if (has_maps && reinterpret_cast<uintptr_t>(parameter) % 64 != 0) return CUDA_ERROR_INVALID_VALUE;
  const unsigned maps = has_maps ? 6 : 0;
  for (unsigned i = 0; i < maps; ++i) {
    uint64_t words[kMapWords];
    std::memcpy(words, parameter + i * sizeof words, sizeof words);
    launch.words[i] = words[kMapWords - 1] == kMapMagic ? words[0] : 0;
  }
  const size_t rest = sizeof launch.words - maps * sizeof launch.words[0];
  std::memcpy(launch.words + maps, parameter + maps * kMapWords * sizeof(uint64_t), rest);
  return CUDA_SUCCESS;
}

}  // namespace

// ---- For the test -------------------------------------------------------------------------------

extern "C" void StandInSetDevice(int device) { current_device = device; }
extern "C" int StandInLoads() { return loads; }
extern "C" int StandInLaunches(Launch* out, int capacity) {
  const std::lock_guard lock(mutex);
  for (int i = 0; i < int(launches.size()) && i < capacity; ++i) out[i] = launches[i];
  return int(launches.size());
}

// ---- The driver's -------------------------------------------------------------------------------

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { return *version = 99000, CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult error, const char** name) {
  *name = error == CUDA_ERROR_INVALID_VALUE     ? "CUDA_ERROR_INVALID_VALUE"
          : error == CUDA_ERROR_INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
                                                : "CUDA_ERROR_INVALID_HANDLE";
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult, const char** text) { return *text = "refused", CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* device) {
  TakeTime();
  if (current_device < 0) return CUDA_ERROR_INVALID_CONTEXT;
  return *device = current_device, CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char* name, int length, CUdevice) {
  return std::strncpy(name, "stand-in", length), CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (device < 0 || device >= kDevices) return CUDA_ERROR_INVALID_DEVICE;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return *value = kSms[device], CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return *value = 9, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return *value = 0, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      return *value = kOptInSmemBytes, CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
}
CUresult cuLibraryLoadData(CUlibrary* library, const void* code, CUjit_option*, void**, unsigned,
                           CUlibraryOption*, void**, unsigned) {
  if (std::memcmp(code, "\177ELF", 4) != 0) return CUDA_ERROR_INVALID_IMAGE;
  const std::lock_guard lock(mutex);
  ++loads;
  Kernel& kernel = kernels.emplace_back();
  for (int device = 0; device < kDevices; ++device) {
    kernel.smem_bytes[device] = kDefaultSmemBytes;
    kernel.functions[device] = {&kernel, device};
  }
  return *library = reinterpret_cast<CUlibrary>(&kernel), CUDA_SUCCESS;
}
CUresult cuLibraryUnload(CUlibrary) { return CUDA_SUCCESS; }
CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name) {
  reinterpret_cast<Kernel*>(library)->name = name;
  return *kernel = reinterpret_cast<CUkernel>(library), CUDA_SUCCESS;
}
CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  TakeTime();
  if (current_device < 0) return CUDA_ERROR_INVALID_CONTEXT;
  const int device = Forgets("device") ? 0 : current_device;
  *function = reinterpret_cast<CUfunction>(&reinterpret_cast<Kernel*>(kernel)->functions[device]);
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  if (attribute != CU_FUNC_ATTRIBUTE_NUM_REGS || function == nullptr) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  return *value = 168, CUDA_SUCCESS;
}
// One cluster fewer than the SMs would hold, as on a GPU whose GPCs have different numbers of them.
CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction f, const CUlaunchConfig* config) {
  const Function& function = *reinterpret_cast<Function*>(f);
  Launch launch{};
  const CUresult result = ReadAttributes(*config, launch);
  if (result != CUDA_SUCCESS) return result;
  const unsigned size = launch.cluster[0];
  const std::lock_guard lock(mutex);
  if (function.device != current_device || size < 2 || config->gridDimX % size != 0 ||
      int(config->sharedMemBytes) > function.kernel->smem_bytes[current_device]) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  return *clusters = kSms[current_device] / int(size) - 1, CUDA_SUCCESS;
}
CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel,
                              CUdevice device) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value > kOptInSmemBytes) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const std::lock_guard lock(mutex);
  if (!Forgets("shared_memory")) reinterpret_cast<Kernel*>(kernel)->smem_bytes[device] = value;
  return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* base,
                                const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  if (rank != 2 || reinterpret_cast<uintptr_t>(base) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(map) % 64 != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  map[Forgets("size") ? 1 : 0] = {};
  *map = {};
  map->opaque[0] = reinterpret_cast<uintptr_t>(base);
  map->opaque[kMapWords - 1] = kMapMagic;
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction f, void** params, void** extra) {
  const Function& function = *reinterpret_cast<Function*>(f);
  if (current_device < 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (function.device != current_device || DeviceOf(config->hStream) != current_device) {
    return CUDA_ERROR_INVALID_HANDLE;
  }
  if (params == nullptr || params[0] == nullptr || extra != nullptr) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (Forgets("lock")) ++launches_seen;
  TakeTime();
  const std::lock_guard lock(mutex);
  if (int(config->sharedMemBytes) > function.kernel->smem_bytes[current_device]) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  Launch launch{current_device,
                {config->gridDimX, config->gridDimY, config->gridDimZ},
                {config->blockDimX, config->blockDimY, config->blockDimZ},
                {1, 1, 1},
                config->sharedMemBytes,
                0,
                reinterpret_cast<uintptr_t>(config->hStream),
                {},
                {}};
  std::strncpy(launch.name, function.kernel->name.c_str(), sizeof launch.name - 1);
  CUresult result = ReadAttributes(*config, launch);
  if (result == CUDA_SUCCESS) result = ReadParameter(static_cast<char*>(params[0]), launch);
  if (result != CUDA_SUCCESS) return result;
  if (config->gridDimX % launch.cluster[0] != 0) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
  launches.push_back(launch);
  return CUDA_SUCCESS;
}
