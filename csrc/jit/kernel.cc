// SPDX-License-Identifier: Apache-2.0
// Compiles through the cache of the process, loads an image once, resolves it per device, launches.
#include "jit/kernel.h"

#include <map>
#include <stdexcept>
#include <utility>

#include "driver/device_limits.h"
#include "driver/error.h"
#include "jit/headers.h"
#include "jit/kernel_cache.h"
#include "jit/nvrtc.h"

namespace fp8gemm {
namespace {

ImageOrigin OriginOf(Backend backend) {
  if (backend == Backend::kSim) return {.compiler = "this build of the simulator"};
  const auto [major, minor] = NvrtcVersion();
  return {.compiler = "NVRTC " + std::to_string(major) + "." + std::to_string(minor) + " (" +
                      NvrtcPath() + ")",
          .cuda_version = 1000 * major + 10 * minor};
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
    case CUDA_ERROR_INVALID_SOURCE:
      return true;
    default:
      return false;
  }
}

/// "13.5" for 13050.
std::string CudaVersionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

std::vector<std::string> NvrtcOptions() { return {"--gpu-architecture=sm_90a", "--std=c++20"}; }

std::string CacheKey(const KernelSource& source) {
  const auto [major, minor] = NvrtcVersion();
  std::string key = HeaderLines(ReachedHeaders(source.text, EmbeddedHeaders()));
  key += "nvrtc " + std::to_string(major) + "." + std::to_string(minor) + ", " + NvrtcIdentity() +
         "\n";
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
    const std::string driver = CudaVersionText(version);
    throw UnsupportedError(
        "The NVIDIA driver, which is for CUDA " + driver + ", refuses the kernel that " +
        origin_.compiler + " compiled (" + call + ": " +
        (name != nullptr ? name : std::to_string(result)) + "); update the driver, or name an " +
        "NVRTC no newer than CUDA " + driver + " with JAX_FP8GEMM_NVRTC, e.g. that of " +
        "`pip install \"jax[cuda12]\"`.");
  }
  Check(api, result, call);
}

const Kernel::OnDevice& Kernel::LoadOn(const DriverApi& api, CUdevice device) {
  const DeviceLimits& limits = Limits(api, device);
  if (source_.smem_bytes > static_cast<unsigned>(limits.smem_bytes_per_block)) {
    throw UnsupportedError("Kernel '" + source_.name + "' needs " +
                           std::to_string(source_.smem_bytes) +
                           " bytes of shared memory per block, but device " +
                           std::to_string(device) + " (" + limits.name + ") offers " +
                           std::to_string(limits.smem_bytes_per_block) +
                           "; choose a configuration with a smaller tile or fewer stages.");
  }
  const std::lock_guard lock(mutex_);
  if (is_loaded_[device].load(std::memory_order_relaxed)) return devices_[device];
  if (library_ == nullptr) {
    CUlibrary library = nullptr;
    CheckImage(api,
               api.cuLibraryLoadData(&library, image_->data(), nullptr, nullptr, 0, nullptr,
                                     nullptr, 0),
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
  devices_[device] = {function, limits.sm_count};
  is_loaded_[device].store(true, std::memory_order_release);
  return devices_[device];
}

void Kernel::Launch(const OnDevice& loaded, const LaunchGeometry& geometry, CUstream stream,
                    void* params) const {
  if (loaded.function == nullptr || params == nullptr) {
    throw std::invalid_argument("a launch needs a function and its parameter");
  }
  if (geometry.grid == 0 || source_.threads == 0 || geometry.cluster == 0 ||
      geometry.grid % geometry.cluster != 0) {
    throw std::invalid_argument(
        "a launch needs a grid that is a multiple of the cluster, got grid " +
        std::to_string(geometry.grid) + ", block " + std::to_string(source_.threads) +
        ", cluster " + std::to_string(geometry.cluster));
  }
  CUlaunchAttribute attributes[2] = {};
  unsigned num_attributes = 0;
  if (geometry.cluster > 1) {
    CUlaunchAttribute& attribute = attributes[num_attributes++];
    attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attribute.value.clusterDim = {geometry.cluster, 1, 1};
  }
  if (geometry.pdl) {
    CUlaunchAttribute& attribute = attributes[num_attributes++];
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
  }
  CUlaunchConfig config{};
  config.gridDimX = geometry.grid;
  config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = source_.threads;
  config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = source_.smem_bytes;
  config.hStream = stream;
  config.attrs = num_attributes != 0 ? attributes : nullptr;
  config.numAttrs = num_attributes;
  void* kernel_params[] = {params};
  const DriverApi& api = driver_();
  Check(api, api.cuLaunchKernelEx(&config, loaded.function, kernel_params, nullptr),
        "cuLaunchKernelEx");
}

}  // namespace fp8gemm
