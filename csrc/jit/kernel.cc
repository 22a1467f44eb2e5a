// SPDX-License-Identifier: Apache-2.0
// Compiles through the cache of the process, loads an image once, resolves it per device, launches.
#include "jit/kernel.h"

#include <cstdint>
#include <map>
#include <stdexcept>
#include <utility>

#include "driver/error.h"
#include "driver/interrupts.h"
#include "jit/headers.h"
#include "jit/kernel_cache.h"
#include "jit/nvrtc.h"

namespace fp8gemm {
namespace {

ImageOrigin OriginOf(Backend backend) {
  if (backend == Backend::kSim) return {.compiler = "this build of the simulator"};
  const NvrtcInfo& nvrtc = Nvrtc();
  return {.compiler = "NVRTC " + nvrtc.version + " (" + nvrtc.path + ")",
          .cuda_version = 1000 * nvrtc.major + 10 * nvrtc.minor};
}

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

/// What a launch and the question how many clusters fit have in common.
class LaunchConfig {
 public:
  LaunchConfig(const KernelSource& source, const LaunchGeometry& geometry, CUstream stream) {
    if (source.cluster > 1) {
      CUlaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
      attribute.value.clusterDim = {source.cluster, 1, 1};
    }
    if (geometry.pdl) {
      CUlaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
      attribute.value.programmaticStreamSerializationAllowed = 1;
    }
    config_.gridDimX = geometry.grid;
    config_.gridDimY = config_.gridDimZ = 1;
    config_.blockDimX = source.threads;
    config_.blockDimY = config_.blockDimZ = 1;
    config_.sharedMemBytes = source.smem_bytes;
    config_.hStream = stream;
    config_.attrs = config_.numAttrs != 0 ? attributes_ : nullptr;
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;
  const CUlaunchConfig* get() const { return &config_; }

 private:
  CUlaunchAttribute attributes_[2] = {};
  CUlaunchConfig config_{};
};

/// "13.5" for 13050.
std::string CudaVersionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// Advice, if there is any but to update the driver. Kernels are for the minor versions of the
/// driver's own major version too, but not always for older ones.
std::string OlderNvrtc(int driver_version, int nvrtc_version) {
  constexpr int kOldestNvrtc = 12090;
  const bool is_12 = driver_version < 13000;
  if (is_12 && nvrtc_version >= 13000) {
    return "name an NVRTC of CUDA 12 with JAX_FP8GEMM_NVRTC, e.g. that of `pip install "
           "\"jax[cuda12]\"`, or ";
  }
  if (driver_version < kOldestNvrtc) return "";
  return std::string("install an older NVRTC, `pip install \"nvidia-cuda-nvrtc") +
         (is_12 ? "-cu12" : "") + "==" + CudaVersionText(driver_version) + ".*\"`, or ";
}

}  // namespace

std::vector<std::string> NvrtcOptions() { return {"--gpu-architecture=sm_90a", "--std=c++20"}; }

std::string CacheKey(const KernelSource& source) {
  std::string key = HeaderLines(ReachedHeaders(source.text, EmbeddedHeaders()));
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
                         .headers = headers})
        .cubin;
  });
}

Kernel& Kernel::Shared(Backend backend, const KernelSource& source) {
  KernelImage image = backend == Backend::kSim ? SimImage(source) : Compile(source);
  static std::mutex mutex;
  static auto& kernels = *new std::map<std::pair<Backend, std::string>, std::unique_ptr<Kernel>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Kernel>& kernel = kernels[{backend, source.key}];
  if (!kernel) {
    kernel = std::make_unique<Kernel>(backend == Backend::kSim ? &SimDriver : &CudaDriver, source,
                                      std::move(image), OriginOf(backend));
  }
  return *kernel;
}

Kernel::Kernel(const DriverApi& (*driver)(), KernelSource source, KernelImage image,
               ImageOrigin origin)
    : driver_(driver),
      source_(std::move(source)),
      image_(std::move(image)),
      origin_(std::move(origin)) {
  if (image_ == nullptr || image_->empty()) {
    throw std::invalid_argument("kernel '" + source_.name + "' has no image");
  }
  if (source_.name.empty()) throw std::invalid_argument("a kernel image needs a kernel name");
}

Kernel::~Kernel() {
  // The result is of no use here: at process exit the driver may already be gone.
  if (library_ != nullptr) driver_().cuLibraryUnload(library_);
}

const Kernel::OnDevice& Kernel::Load() {
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
  if (RefusesImage(result) && api.cuDriverGetVersion(&version) == CUDA_SUCCESS &&
      version < origin_.cuda_version) {
    const char* name = nullptr;
    api.cuGetErrorName(result, &name);
    throw UnsupportedError("The NVIDIA driver, which is for CUDA " + CudaVersionText(version) +
                           ", refuses the kernel that " + origin_.compiler + " compiled (" + call +
                           ": " + (name != nullptr ? name : std::to_string(result)) + "); " +
                           OlderNvrtc(version, origin_.cuda_version) + "update the driver.");
  }
  Check(api, result, call);
}

const Kernel::OnDevice& Kernel::LoadOn(const DriverApi& api, CUdevice device) {
  const DeviceLimits& limits = Limits(api, device);
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
  if (kernel_ == nullptr) {
    CUkernel kernel = nullptr;
    CheckImage(api, api.cuLibraryGetKernel(&kernel, library_, source_.name.c_str()),
               "cuLibraryGetKernel");
    kernel_ = kernel;
  }
  Check(api,
        api.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                 static_cast<int>(source_.smem_bytes), kernel_, device),
        "cuKernelSetAttribute");
  // A driver that loads lazily looks at the image only now.
  CUfunction function = nullptr;
  CheckImage(api, api.cuKernelGetFunction(&function, kernel_), "cuKernelGetFunction");
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
  const LaunchConfig config(source_, {.grid = source_.cluster}, nullptr);
  int clusters = 0;
  Check(api, api.cuOccupancyMaxActiveClusters(&clusters, function, config.get()),
        "cuOccupancyMaxActiveClusters");
  if (clusters < 1) {
    throw UnsupportedError("Kernel '" + source_.name + "' runs in clusters of " +
                           std::to_string(source_.cluster) + " CTAs, and device " +
                           std::to_string(limits.ordinal) + " (" + limits.name +
                           ") has no room for one; choose a configuration without a cluster.");
  }
  return clusters;
}

void Kernel::Launch(const OnDevice& loaded, const LaunchGeometry& geometry, CUstream stream,
                    void* params) const {
  if (loaded.function == nullptr || params == nullptr) {
    throw std::invalid_argument("a launch needs a function and its parameter");
  }
  if (geometry.grid == 0 || source_.threads == 0 || source_.cluster == 0 ||
      geometry.grid % source_.cluster != 0) {
    throw std::invalid_argument(
        "a launch needs a grid that is a multiple of the cluster, got grid " +
        std::to_string(geometry.grid) + ", block " + std::to_string(source_.threads) +
        ", cluster " + std::to_string(source_.cluster));
  }
  const LaunchConfig config(source_, geometry, stream);
  void* kernel_params[] = {params};
  const DriverApi& api = driver_();
  // Only a simulated launch takes long, and can be stopped.
  const bool is_simulated = api.set_interrupts != nullptr;
  const uint64_t mark = is_simulated ? WatchInterrupts() : 0;
  const CUresult result =
      api.cuLaunchKernelEx(config.get(), loaded.function, kernel_params, nullptr);
  if (result != CUDA_SUCCESS && is_simulated && WasInterrupted(mark)) throw InterruptedError();
  Check(api, result, "cuLaunchKernelEx");
}

}  // namespace fp8gemm
