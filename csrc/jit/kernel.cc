// SPDX-License-Identifier: Apache-2.0
// Compiles through the cache of the process, loads an image once, resolves it per device, launches.
#include "jit/kernel.h"

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "driver/error.h"
#include "driver/interrupts.h"
#include "jit/headers.h"
#include "jit/kernel_cache.h"
#include "jit/nvrtc.h"

namespace fp8gemm {
namespace {

// Never destroyed: threads of XLA may outlive static destruction.
ForkMutex& shared_kernels_mutex = *new ForkMutex;
auto& shared_kernels = *new std::map<std::pair<Backend, std::string>, Kernel>;

bool IsSimulator(const DriverApi& api) { return api.set_interrupts != nullptr; }

/// What the simulator's cuLibraryLoadData takes in place of a cubin.
KernelImage SimImage(const KernelSource& source) {
  return std::make_shared<const std::string>("fp8gemm-sim\n" + source.key + "\n");
}

/// Whether a driver says by `result` that it does not understand an image.
bool RefusesImage(CUresult result) {
  switch (result) {
    case CUDA_ERROR_INVALID_IMAGE:
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_INVALID_PTX:
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
    case CUDA_ERROR_INVALID_SOURCE: return true;
    default: return false;
  }
}

/// What the driver is told of a launch. The cluster is the first attribute, if there is one.
CUlaunchConfig LaunchConfig(const KernelSource& source, unsigned grid, CUstream stream,
                            CUlaunchAttribute (&attributes)[2]) {
  CUlaunchConfig config{};
  if (source.cluster > 1) {
    CUlaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attribute.value.clusterDim = {source.cluster, 1, 1};
  }
  if (source.pdl) {
    CUlaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
  }
  config.gridDimX = grid;
  config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = source.threads;
  config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = source.smem_bytes;
  config.hStream = stream;
  config.attrs = config.numAttrs != 0 ? attributes : nullptr;
  return config;
}

/// "13.5" for 13050.
std::string CudaVersionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// What to do where a driver refuses kernels of a newer NVRTC. Kernels run on the minor versions of
/// the driver's own major version too, but not always on older ones.
std::string AdviceFor(int driver_version, int nvrtc_version) {
  constexpr int kOldestNvrtc = 12090;
  const bool is_12 = driver_version < 13000;
  if (is_12 && nvrtc_version >= 13000) {
    return "name an NVRTC of CUDA 12 with JAX_FP8GEMM_NVRTC, e.g. that of `pip install "
           "\"jax[cuda12]\"`, or update the driver.";
  }
  if (driver_version < kOldestNvrtc) return "update the driver.";
  return std::string("install an older NVRTC, `pip install \"nvidia-cuda-nvrtc") +
         (is_12 ? "-cu12" : "") + "==" + CudaVersionText(driver_version) +
         ".*\"`, or update the driver.";
}

}  // namespace

std::vector<std::string> NvrtcOptions() { return {"--gpu-architecture=sm_90a", "--std=c++20"}; }

std::string CacheKey(const KernelSource& source) {
  std::string key;
  for (const HeaderText& header : ReachedHeaders(source.text, EmbeddedHeaders())) {
    key.append("header ").append(header.name).append(" ").append(header.digest).append("\n");
  }
  key += "nvrtc " + Nvrtc().version + ", " + Nvrtc().identity + "\n";
  for (const std::string& option : NvrtcOptions()) key += "option " + option + "\n";
  return key + source.text;
}

KernelImage Compile(const KernelSource& source) {
  return ProcessKernelCache().GetOrBuild(CacheKey(source), source.key, [&] {
    const std::vector<HeaderText> headers = ReachedHeaders(source.text, EmbeddedHeaders());
    return CompileCubin({.source = source.text,
                         .name = source.key + ".cu",
                         .options = NvrtcOptions(),
                         .headers = headers});
  });
}

Kernel& Kernel::Shared(Backend backend, const KernelSource& source) {
  const bool is_simulated = backend == Backend::kSim;
  KernelImage image = is_simulated ? SimImage(source) : Compile(source);
  const std::lock_guard lock(shared_kernels_mutex);
  return shared_kernels
      .try_emplace({backend, source.key}, is_simulated ? &SimDriver : &CudaDriver, source,
                   std::move(image))
      .first->second;
}

Kernel::Kernel(const DriverApi& (*driver)(), KernelSource source, KernelImage image)
    : driver_(driver), source_(std::move(source)), image_(std::move(image)) {}

Kernel::~Kernel() {
  // The result is of no use here: at process exit the driver may already be gone.
  if (library_ != nullptr) driver_().cuLibraryUnload(library_);
}

const Kernel::Loaded& Kernel::Load() {
  const DriverApi& api = driver_();
  CUdevice device = -1;
  Check(api, api.cuCtxGetDevice(&device), "cuCtxGetDevice");
  if (device < 0 || device >= kMaxDevices) {
    throw UnsupportedError("Device ordinal " + std::to_string(device) + " is out of range: only " +
                           std::to_string(kMaxDevices) +
                           " devices per process are supported; restrict CUDA_VISIBLE_DEVICES.");
  }
  return is_loaded_[device].load(std::memory_order_acquire) ? devices_[device]
                                                            : LoadOn(api, device);
}

void Kernel::CheckImage(const DriverApi& api, CUresult result, const char* call) const {
  int version = 0;
  if (RefusesImage(result) && !IsSimulator(api) &&
      api.cuDriverGetVersion(&version) == CUDA_SUCCESS) {
    const NvrtcInfo& nvrtc = Nvrtc();
    const int nvrtc_version = 1000 * nvrtc.major + 10 * nvrtc.minor;
    if (version < nvrtc_version) {
      const char* name = nullptr;
      api.cuGetErrorName(result, &name);
      throw UnsupportedError("The NVIDIA driver, which is for CUDA " + CudaVersionText(version) +
                             ", refuses the kernel that NVRTC " + nvrtc.version + " (" +
                             nvrtc.path + ") compiled (" + call + ": " +
                             (name != nullptr ? name : std::to_string(result)) + "); " +
                             AdviceFor(version, nvrtc_version));
    }
  }
  Check(api, result, call);
}

const Kernel::Loaded& Kernel::LoadOn(const DriverApi& api, CUdevice device) {
  const DeviceLimits limits = ReadLimits(api, device);
  if (source_.smem_bytes > static_cast<unsigned>(limits.smem_bytes_per_block)) {
    throw UnsupportedError(
        "Kernel '" + source_.name + "' needs " + std::to_string(source_.smem_bytes) +
        " bytes of shared memory per block, but device " + std::to_string(device) + " (" +
        limits.name + ") offers " + std::to_string(limits.smem_bytes_per_block) +
        "; choose a configuration with a smaller tile or fewer stages.");
  }
  const std::lock_guard lock(mutex_);
  if (is_loaded_[device].load(std::memory_order_relaxed)) return devices_[device];
  if (library_ == nullptr) {
    CUlibrary library = nullptr;
    CheckImage(
        api,
        api.cuLibraryLoadData(&library, image_->data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
        "cuLibraryLoadData");
    library_ = library;  // only now, so that a failed load is never unloaded
  }
  CUkernel kernel = nullptr;
  CheckImage(api, api.cuLibraryGetKernel(&kernel, library_, source_.name.c_str()),
             "cuLibraryGetKernel");
  Check(api,
        api.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                 static_cast<int>(source_.smem_bytes), kernel, device),
        "cuKernelSetAttribute");
  // A driver that loads lazily looks at the image only now.
  CUfunction function = nullptr;
  CheckImage(api, api.cuKernelGetFunction(&function, kernel), "cuKernelGetFunction");
  int registers = 0;  // of no interest: reading an attribute makes a lazy driver load the code now
  CheckImage(api, api.cuFuncGetAttribute(&registers, CU_FUNC_ATTRIBUTE_NUM_REGS, function),
             "cuFuncGetAttribute");
  devices_[device] = {function, limits.sm_count, MaxClusters(api, function, limits)};
  is_loaded_[device].store(true, std::memory_order_release);
  return devices_[device];
}

int Kernel::MaxClusters(const DriverApi& api, CUfunction function,
                        const DeviceLimits& limits) const {
  if (source_.cluster == 1) return limits.sm_count;
  CUlaunchAttribute attributes[2] = {};
  CUlaunchConfig config = LaunchConfig(source_, source_.cluster, nullptr, attributes);
  config.numAttrs = 1;  // the cluster alone
  int clusters = 0;
  Check(api, api.cuOccupancyMaxActiveClusters(&clusters, function, &config),
        "cuOccupancyMaxActiveClusters");
  if (clusters < 1) {
    throw UnsupportedError("Kernel '" + source_.name + "' runs in clusters of " +
                           std::to_string(source_.cluster) + " CTAs, and device " +
                           std::to_string(limits.ordinal) + " (" + limits.name +
                           ") has no room for one; choose a configuration without a cluster.");
  }
  return clusters;
}

void Kernel::Launch(const Loaded& loaded, unsigned grid, CUstream stream, void* params) const {
  CUlaunchAttribute attributes[2] = {};
  const CUlaunchConfig config = LaunchConfig(source_, grid, stream, attributes);
  void* kernel_params[] = {params};
  const DriverApi& api = driver_();
  // Only a simulated launch takes long, and can be stopped.
  const bool is_simulated = IsSimulator(api);
  const uint64_t mark = is_simulated ? WatchInterrupts() : 0;
  const CUresult result = api.cuLaunchKernelEx(&config, loaded.function, kernel_params, nullptr);
  if (result != CUDA_SUCCESS && is_simulated && WasInterrupted(mark)) throw InterruptedError();
  Check(api, result, "cuLaunchKernelEx");
}

}  // namespace fp8gemm
