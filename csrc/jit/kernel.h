// SPDX-License-Identifier: Apache-2.0
// Kernel: compiled from a few lines of text, loaded once, launched on any device of the process.
#pragma once
#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "driver/device_limits.h"
#include "driver/driver.h"
#include "driver/fork_mutex.h"

namespace fp8gemm {

/// What a kernel is made of.
struct KernelSource {
  std::string key;   // of its configuration: tells kernels apart, names files of the cache
  std::string name;  // of the entry point
  std::string text;  // the few lines that instantiate it; headers.h has the rest
  unsigned threads = 0;
  unsigned smem_bytes = 0;  // dynamic shared memory per CTA
  unsigned cluster = 1;     // CTAs per cluster
  bool pdl = false;         // a launch may start before the previous kernel of the stream ends
};

/// Machine code, or whatever the driver of a backend loads.
using KernelImage = std::shared_ptr<const std::string>;

/// NVRTC's options for every kernel. The architecture is Hopper with its architecture-specific
/// instructions (wgmma, setmaxnreg): such code runs on compute capability 9.0 only, so PTX would
/// buy no portability.
std::vector<std::string> NvrtcOptions();

/// Everything that the machine code of a kernel depends on, as text: the headers that it reaches,
/// NVRTC, options and its own lines.
std::string CacheKey(const KernelSource& source);

/// The machine code for sm_90a, from the cache of the process or compiled now.
KernelImage Compile(const KernelSource& source);

/// Safe to use from many threads and on many devices at the same time.
///
/// Construction never touches the driver. The destructor unloads the kernel, so keep the object
/// alive for as long as a launch may run or a CUDA graph may replay it: in practice for the life of
/// the process.
class Kernel {
 public:
  /// What a launch needs of the device that it is loaded on.
  struct Loaded {
    CUfunction function = nullptr;
    int sm_count = 0;
    int max_clusters = 0;  // that are resident at once; of single CTAs, one for each SM
  };

  /// Compiles, without a GPU, and returns the kernel that all call sites with this source share for
  /// the life of the process. The simulator has its kernels built in.
  /// @throws UnsupportedError  There is no usable NVRTC.
  /// @throws CompileError  NVRTC rejected the source.
  static Kernel& Shared(Backend backend, const KernelSource& source);

  /// @param driver  Called when the kernel is first loaded.
  /// @param image   Cubin, or whatever the driver takes. Not null, not empty.
  Kernel(const DriverApi& (*driver)(), KernelSource source, KernelImage image);
  ~Kernel();
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  /// The kernel on the device that is current on this thread, which XLA is trusted to have made
  /// that of the program. The reference stays valid.
  ///
  /// The first call on a device loads the image if need be, opts in to the shared memory, resolves
  /// the function and asks how many clusters fit, under a lock; later calls are one driver query
  /// and one atomic load. Do the first call outside of stream capture. Functions are kept per
  /// device, which is enough as XLA uses one context per device, the primary one.
  ///
  /// @throws UnsupportedError  There is no driver; the device is not Hopper, has too little shared
  ///     memory, or no room for a cluster; or the driver is older than what made the image, and
  ///     refuses it.
  /// @throws CudaError  No current context, or the image does not load.
  const Loaded& Load();

  /// Enqueues one launch of what `Load` returned. No allocation, no lock, no synchronization.
  ///
  /// @param grid    CTAs, in whole clusters.
  /// @param params  Address of the kernel's single parameter; copied before the call returns.
  /// @throws CudaError  The driver refused.
  /// @throws InterruptedError  Ctrl-C stopped a simulated launch.
  void Launch(const Loaded& loaded, unsigned grid, CUstream stream, void* params) const;

  const DriverApi& driver() const { return driver_(); }

 private:
  static constexpr int kMaxDevices = 64;

  const Loaded& LoadOn(const DriverApi& api, CUdevice device);
  int MaxClusters(const DriverApi& api, CUfunction function, const DeviceLimits& limits) const;
  void CheckImage(const DriverApi& api, CUresult result, const char* call) const;

  const DriverApi& (*const driver_)();
  const KernelSource source_;
  const KernelImage image_;
  ForkMutex mutex_;  // guards what follows against concurrent first uses
  CUlibrary library_ = nullptr;
  std::array<Loaded, kMaxDevices> devices_{};               // by device ordinal
  std::array<std::atomic<bool>, kMaxDevices> is_loaded_{};  // whether devices_[i] is final
};

}  // namespace fp8gemm
