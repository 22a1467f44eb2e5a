// SPDX-License-Identifier: Apache-2.0
// One loaded kernel and its launch.
#pragma once
#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "driver/driver.h"

namespace fp8gemm {

struct LaunchGeometry {
  unsigned grid = 1;        // CTAs, a multiple of `cluster`
  unsigned block = 1;       // threads per CTA
  unsigned cluster = 1;     // CTAs per cluster
  unsigned smem_bytes = 0;  // dynamic shared memory per CTA
  bool pdl = false;         // may start before the previous kernel of the stream ends
};

/// What made an image, for a message when the driver refuses it.
struct ImageOrigin {
  std::string compiler;  // e.g. "NVRTC 13.5 (/path/libnvrtc.so.13)"
  int cuda_version = 0;  // whose it is, as cuDriverGetVersion counts: 13050; 0: none
};

/// A loaded kernel on one device.
struct DeviceKernel {
  CUfunction function = nullptr;
  int sm_count = 0;
};

/// A kernel image that is loaded into the driver on first use.
///
/// Construction never touches the driver. Thread-safe. The destructor unloads the library, so keep
/// the object alive for as long as a launch may run or a CUDA graph may replay it: in practice for
/// the life of the process.
class LoadedKernel {
 public:
  /// @param image        Cubin, or whatever the driver behind `api` takes. Not null, not empty.
  /// @param kernel_name  Symbol of the kernel in the image.
  /// @throws std::invalid_argument  The image or the name is missing.
  LoadedKernel(const DriverApi& api, std::shared_ptr<const std::string> image,
               std::string kernel_name, unsigned smem_bytes, unsigned threads,
               ImageOrigin origin = {});
  ~LoadedKernel();
  LoadedKernel(const LoadedKernel&) = delete;
  LoadedKernel& operator=(const LoadedKernel&) = delete;

  /// The kernel on the device that is current on this thread. The reference stays valid.
  ///
  /// The first call on a device loads the library if need be, opts in to the shared memory and
  /// resolves the function, under a lock; later calls are one driver query and one atomic load.
  /// Do the first call outside of stream capture. Functions are kept per device, which is enough
  /// as XLA uses one context per device, the primary one.
  ///
  /// @throws UnsupportedError  The device is not Hopper, or has too little shared memory; or the
  ///     driver is older than what made the image, and refuses it.
  /// @throws CudaError         No current context, or the image does not load.
  const DeviceKernel& ForCurrentContext();

  const DriverApi& api() const { return api_; }
  const std::string& kernel_name() const { return kernel_name_; }
  unsigned smem_bytes() const { return smem_bytes_; }
  unsigned threads() const { return threads_; }

 private:
  static constexpr int kMaxDevices = 64;

  const DeviceKernel& Resolve(CUdevice device);
  void CheckImage(CUresult result, const char* call) const;

  const DriverApi& api_;
  const std::shared_ptr<const std::string> image_;
  const std::string kernel_name_;
  const unsigned smem_bytes_;
  const unsigned threads_;
  const ImageOrigin origin_;
  std::mutex mutex_;             // guards what follows against concurrent first uses
  CUlibrary library_ = nullptr;
  CUkernel kernel_ = nullptr;
  std::array<DeviceKernel, kMaxDevices> devices_{};              // by device ordinal
  std::array<std::atomic<bool>, kMaxDevices> is_resolved_{};     // whether devices_[i] is final
};

/// Enqueues one launch. No allocation, no lock, no synchronisation.
///
/// @param params  Address of the kernel's single parameter; copied before the call returns.
/// @throws std::invalid_argument  The geometry is not launchable.
/// @throws CudaError              The driver refused.
void Launch(const DriverApi& api, CUfunction function, const LaunchGeometry& geometry,
            CUstream stream, void* params);

}  // namespace fp8gemm
