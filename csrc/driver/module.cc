// SPDX-License-Identifier: Apache-2.0
// Loads a kernel image once per process, resolves it per device, and launches it.
#include "driver/module.h"

#include <stdexcept>
#include <utility>

#include "driver/device_limits.h"
#include "driver/error.h"

namespace fp8gemm {
namespace {

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

LoadedKernel::LoadedKernel(const DriverApi& api, std::shared_ptr<const std::string> image,
                           std::string kernel_name, unsigned smem_bytes, unsigned threads,
                           ImageOrigin origin)
    : api_(api),
      image_(std::move(image)),
      kernel_name_(std::move(kernel_name)),
      smem_bytes_(smem_bytes),
      threads_(threads),
      origin_(std::move(origin)) {
  if (image_ == nullptr || image_->empty()) {
    throw std::invalid_argument("kernel '" + kernel_name_ + "' has no image");
  }
  if (kernel_name_.empty()) throw std::invalid_argument("a kernel image needs a kernel name");
}

LoadedKernel::~LoadedKernel() {
  // The result is of no use here: at process exit the driver may already be gone.
  if (library_ != nullptr) api_.cuLibraryUnload(library_);
}

const DeviceKernel& LoadedKernel::ForCurrentContext() {
  CUdevice device = -1;
  Check(api_, api_.cuCtxGetDevice(&device), "cuCtxGetDevice");
  if (device < 0 || device >= kMaxDevices) {
    throw UnsupportedError("Device ordinal " + std::to_string(device) + " is out of range: only " +
                           std::to_string(kMaxDevices) +
                           " devices per process are supported; restrict CUDA_VISIBLE_DEVICES.");
  }
  return is_resolved_[device].load(std::memory_order_acquire) ? devices_[device]
                                                              : Resolve(device);
}

void LoadedKernel::CheckImage(CUresult result, const char* call) const {
  int version = 0;
  if (RefusesImage(result) && api_.cuDriverGetVersion(&version) == CUDA_SUCCESS &&
      version < origin_.cuda_version) {
    const char* name = nullptr;
    api_.cuGetErrorName(result, &name);
    const std::string driver = CudaVersionText(version);
    throw UnsupportedError(
        "The NVIDIA driver, which is for CUDA " + driver + ", refuses the kernel that " +
        origin_.compiler + " compiled (" + call + ": " +
        (name != nullptr ? name : std::to_string(result)) + "); update the driver, or name an " +
        "NVRTC no newer than CUDA " + driver + " with JAX_FP8GEMM_NVRTC, e.g. that of " +
        "`pip install \"jax[cuda12]\"`.");
  }
  Check(api_, result, call);
}

const DeviceKernel& LoadedKernel::Resolve(CUdevice device) {
  const DeviceLimits& limits = Limits(api_, device);
  if (smem_bytes_ > static_cast<unsigned>(limits.smem_bytes_per_block)) {
    throw UnsupportedError("Kernel '" + kernel_name_ + "' needs " + std::to_string(smem_bytes_) +
                           " bytes of shared memory per block, but device " +
                           std::to_string(device) + " (" + limits.name + ") offers " +
                           std::to_string(limits.smem_bytes_per_block) +
                           "; choose a configuration with a smaller tile or fewer stages.");
  }
  const std::lock_guard lock(mutex_);
  if (is_resolved_[device].load(std::memory_order_relaxed)) return devices_[device];
  if (library_ == nullptr) {
    CUlibrary library = nullptr;
    CheckImage(api_.cuLibraryLoadData(&library, image_->data(), nullptr, nullptr, 0, nullptr,
                                      nullptr, 0),
               "cuLibraryLoadData");
    library_ = library;  // only now, so that a failed load is never unloaded
  }
  if (kernel_ == nullptr) {
    CUkernel kernel = nullptr;
    CheckImage(api_.cuLibraryGetKernel(&kernel, library_, kernel_name_.c_str()),
               "cuLibraryGetKernel");
    kernel_ = kernel;
  }
  Check(api_,
        api_.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                  static_cast<int>(smem_bytes_), kernel_, device),
        "cuKernelSetAttribute");
  // A driver that loads lazily looks at the image only now.
  CUfunction function = nullptr;
  CheckImage(api_.cuKernelGetFunction(&function, kernel_), "cuKernelGetFunction");
  devices_[device] = {function, limits.sm_count};
  is_resolved_[device].store(true, std::memory_order_release);
  return devices_[device];
}

void Launch(const DriverApi& api, CUfunction function, const LaunchGeometry& geometry,
            CUstream stream, void* params) {
  if (function == nullptr || params == nullptr) {
    throw std::invalid_argument("a launch needs a function and its parameter");
  }
  if (geometry.grid == 0 || geometry.block == 0 || geometry.cluster == 0 ||
      geometry.grid % geometry.cluster != 0) {
    throw std::invalid_argument(
        "a launch needs a grid that is a multiple of the cluster, got grid " +
        std::to_string(geometry.grid) + ", block " + std::to_string(geometry.block) +
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
  config.blockDimX = geometry.block;
  config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = geometry.smem_bytes;
  config.hStream = stream;
  config.attrs = num_attributes != 0 ? attributes : nullptr;
  config.numAttrs = num_attributes;
  void* kernel_params[] = {params};
  Check(api, api.cuLaunchKernelEx(&config, function, kernel_params, nullptr), "cuLaunchKernelEx");
}

}  // namespace fp8gemm
