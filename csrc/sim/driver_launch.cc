// SPDX-License-Identifier: Apache-2.0
// Kernel images, kernels and launches of the simulated driver.
//
// An image is the text "fp8gemm-sim\n<kernel key>\n"; the kernel itself is compiled for the CPU.
// The name asked of a library is not compared: a registry entry is one kernel, whatever its name.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>

#include "sim/driver_state.h"
#include "sim/engine/grid.h"

namespace fp8gemm::sim {
namespace {

constexpr char kMagic[] = "fp8gemm-sim\n";
constexpr size_t kMaxKeyBytes = 4096;
constexpr unsigned kMaxSmemPerBlock = 232448;
constexpr unsigned kDefaultSmemPerBlock = 48 * 1024;
constexpr unsigned kMaxCluster = 8;  // more is not portable between GPUs
constexpr unsigned kMaxGrid = (1u << 31) - 1;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxRegisters = 65536;  // of a CTA
constexpr unsigned kRegisterUnit = 8;      // per thread, that a warp gets them by
constexpr size_t kParamsAlignment = 64;

// A library, its only kernel and that kernel's function are one object.
struct LoadedKernelImage {
  const SimKernel* kernel;
  unsigned max_smem_bytes = kDefaultSmemPerBlock;
};

LoadedKernelImage* FromHandle(void* handle) { return static_cast<LoadedKernelImage*>(handle); }

struct LaunchAttributes {
  unsigned cluster = 1;
  bool has_cluster = false;
  bool is_dependent = false;
};

CUresult ReadAttributes(const CUlaunchConfig& config, LaunchAttributes& attributes) {
  if (config.numAttrs != 0 && config.attrs == nullptr) {
    return Fail(CUDA_ERROR_INVALID_VALUE, "the launch attributes must not be null");
  }
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const CUlaunchAttribute& attribute = config.attrs[i];
    switch (attribute.id) {
      case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
        if (attribute.value.clusterDim.y != 1 || attribute.value.clusterDim.z != 1) {
          return Fail(CUDA_ERROR_INVALID_CLUSTER_SIZE, "clusters must be one-dimensional");
        }
        attributes.cluster = attribute.value.clusterDim.x;
        attributes.has_cluster = true;
        break;
      case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
        attributes.is_dependent = attribute.value.programmaticStreamSerializationAllowed != 0;
        break;
      default:
        return Fail(CUDA_ERROR_INVALID_VALUE,
                    "the simulator does not know launch attribute " +
                        std::to_string(static_cast<unsigned>(attribute.id)));
    }
  }
  return CUDA_SUCCESS;
}

std::string Got(const char* rule, unsigned got, unsigned wanted) {
  return std::string(rule) + ": got " + std::to_string(got) + ", limit or requirement " +
         std::to_string(wanted);
}

// What one CTA of the kernel may have of an SM.
CUresult CheckResources(const CUlaunchConfig& config, const LoadedKernelImage& image) {
  const SimKernel& kernel = *image.kernel;
  if (kernel.threads > kMaxThreads) {
    return Fail(CUDA_ERROR_INVALID_VALUE, Got("threads per CTA", kernel.threads, kMaxThreads));
  }
  const unsigned registers =
      (kernel.launch_registers + kRegisterUnit - 1) / kRegisterUnit * kRegisterUnit;
  if (kernel.threads * registers > kMaxRegisters) {
    return Fail(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
                Got("registers per CTA", kernel.threads * registers, kMaxRegisters));
  }
  if (config.sharedMemBytes > image.max_smem_bytes) {
    return Fail(CUDA_ERROR_INVALID_VALUE,
                Got("dynamic shared memory allowed by the kernel's attribute",
                    config.sharedMemBytes, image.max_smem_bytes));
  }
  if (config.sharedMemBytes < kernel.smem_bytes) {
    return Fail(CUDA_ERROR_INVALID_VALUE, Got("dynamic shared memory the kernel addresses",
                                              config.sharedMemBytes, kernel.smem_bytes));
  }
  return CUDA_SUCCESS;
}

CUresult CheckGeometry(const CUlaunchConfig& config, const LaunchAttributes& attributes,
                       const LoadedKernelImage& image) {
  const SimKernel& kernel = *image.kernel;
  if (config.gridDimX == 0 || config.gridDimY != 1 || config.gridDimZ != 1 ||
      config.blockDimY != 1 || config.blockDimZ != 1) {
    return Fail(CUDA_ERROR_INVALID_VALUE, "grid and block must be one-dimensional, not empty");
  }
  if (config.gridDimX > kMaxGrid) {
    return Fail(CUDA_ERROR_INVALID_VALUE, Got("CTAs per grid", config.gridDimX, kMaxGrid));
  }
  if (attributes.cluster == 0 || attributes.cluster > kMaxCluster) {
    return Fail(CUDA_ERROR_INVALID_CLUSTER_SIZE,
                Got("CTAs per cluster", attributes.cluster, kMaxCluster));
  }
  if (config.gridDimX % attributes.cluster != 0) {
    return Fail(CUDA_ERROR_INVALID_VALUE, Got("the grid must be a multiple of the cluster",
                                              config.gridDimX, attributes.cluster));
  }
  if (config.blockDimX != kernel.threads) {
    return Fail(CUDA_ERROR_INVALID_VALUE,
                Got("threads the kernel is built for", config.blockDimX, kernel.threads));
  }
  if (attributes.cluster != kernel.cluster) {
    return Fail(CUDA_ERROR_INVALID_CLUSTER_SIZE,
                Got("cluster the kernel is built for", attributes.cluster, kernel.cluster));
  }
  return CheckResources(config, image);
}

// The driver copies parameters at launch, so later changes by the caller do not matter.
using ParamsCopy = std::unique_ptr<void, decltype(&std::free)>;

ParamsCopy CopyParams(const void* params, size_t bytes) {
  const size_t rounded = (bytes + kParamsAlignment - 1) / kParamsAlignment * kParamsAlignment;
  ParamsCopy copy(std::aligned_alloc(kParamsAlignment, rounded), &std::free);
  if (copy == nullptr) throw std::bad_alloc();
  std::memcpy(copy.get(), params, bytes);
  return copy;
}

// Says for a scope that a launch is being simulated.
class Launching {
 public:
  explicit Launching(std::atomic<bool>& flag) : flag_(flag) { flag_ = true; }
  ~Launching() { flag_ = false; }
  Launching(const Launching&) = delete;
  Launching& operator=(const Launching&) = delete;

 private:
  std::atomic<bool>& flag_;
};

CUresult RunLaunch(const CUlaunchConfig& config, const LaunchAttributes& attributes,
                   const LoadedKernelImage& image, const void* params) {
  const ParamsCopy copy = CopyParams(params, image.kernel->params_bytes);
  DriverState& state = State();
  const GridLaunch launch = {image.kernel, copy.get(), config.gridDimX, config.sharedMemBytes,
                             attributes.is_dependent,
                             // Before the lock: launches that wait for others stop with them.
                             state.watch_interrupts(), state.was_interrupted};
  if (state.was_forked_in_launch) {
    return Fail(
        CUDA_ERROR_NOT_SUPPORTED,
        "The simulator cannot be used: this process was forked while its parent simulated a "
        "launch; start processes by \"spawn\" or \"forkserver\".");
  }
  const std::lock_guard lock(state.mutex);
  const Launching launching(state.is_launching);
  const GridResult result = RunGrid(launch, state.options, state.ranges, state.stats);
  if (result.ok) return CUDA_SUCCESS;
  return Fail(CUDA_ERROR_LAUNCH_FAILED, "kernel " + std::string(image.kernel->key) + ", seed " +
                                            std::to_string(state.options.seed) + ":\n" +
                                            result.report);
}

}  // namespace

CUresult LibraryLoadData(CUlibrary* library, const void* image, CUjit_option*, void**, unsigned,
                         CUlibraryOption*, void**, unsigned) {
  if (library == nullptr || image == nullptr) {
    return Fail(CUDA_ERROR_INVALID_VALUE, "cuLibraryLoadData needs a library and an image");
  }
  const char* const text = static_cast<const char*>(image);
  constexpr size_t kMagicBytes = sizeof kMagic - 1;
  if (std::strncmp(text, kMagic, kMagicBytes) != 0) {
    return Fail(CUDA_ERROR_INVALID_IMAGE, "the image is not one of the simulator's");
  }
  const size_t key_bytes = strcspn(text + kMagicBytes, "\n");
  if (key_bytes > kMaxKeyBytes || text[kMagicBytes + key_bytes] != '\n') {
    return Fail(CUDA_ERROR_INVALID_IMAGE, "the image has no kernel key");
  }
  const std::string key(text + kMagicBytes, key_bytes);
  const SimKernel* const kernel = FindKernel(key.c_str());
  if (const std::string missing = MissingKernels(); !missing.empty()) {
    return Fail(CUDA_ERROR_NOT_SUPPORTED, missing);
  }
  if (kernel == nullptr) {
    return Fail(CUDA_ERROR_NOT_FOUND, "the simulator was built without kernel " + key);
  }
  auto* const loaded = new (std::nothrow) LoadedKernelImage{kernel};
  if (loaded == nullptr) return Fail(CUDA_ERROR_OUT_OF_MEMORY, "no memory for a library");
  *library = reinterpret_cast<CUlibrary>(loaded);
  return CUDA_SUCCESS;
}

CUresult LibraryUnload(CUlibrary library) {
  delete FromHandle(library);
  return CUDA_SUCCESS;
}

CUresult LibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name) {
  if (kernel == nullptr || library == nullptr || name == nullptr) {
    return Fail(CUDA_ERROR_INVALID_VALUE, "cuLibraryGetKernel needs a library and a name");
  }
  *kernel = reinterpret_cast<CUkernel>(library);
  return CUDA_SUCCESS;
}

CUresult KernelGetFunction(CUfunction* function, CUkernel kernel) {
  if (function == nullptr || kernel == nullptr) {
    return Fail(CUDA_ERROR_INVALID_VALUE, "cuKernelGetFunction needs a kernel");
  }
  *function = reinterpret_cast<CUfunction>(kernel);
  return CUDA_SUCCESS;
}

CUresult FuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  if (value == nullptr || function == nullptr || attribute != CU_FUNC_ATTRIBUTE_NUM_REGS) {
    return Fail(CUDA_ERROR_INVALID_VALUE, "cuFuncGetAttribute needs a function and NUM_REGS");
  }
  *value = static_cast<int>(FromHandle(function)->kernel->launch_registers);
  return CUDA_SUCCESS;
}

CUresult OccupancyMaxActiveClusters(int* clusters, CUfunction function,
                                    const CUlaunchConfig* config) {
  if (clusters == nullptr || function == nullptr || config == nullptr) {
    return Fail(CUDA_ERROR_INVALID_VALUE, "the question needs a function and a configuration");
  }
  LaunchAttributes attributes;
  CUresult result = ReadAttributes(*config, attributes);
  if (result == CUDA_SUCCESS && !attributes.has_cluster) {
    return Fail(CUDA_ERROR_INVALID_VALUE, "the question needs the size of a cluster");
  }
  if (result == CUDA_SUCCESS) result = CheckGeometry(*config, attributes, *FromHandle(function));
  if (result != CUDA_SUCCESS) return result;
  const std::lock_guard lock(State().mutex);
  // One always runs, however few SMs are simulated.
  *clusters = std::max(1, State().options.num_sms / static_cast<int>(attributes.cluster));
  return CUDA_SUCCESS;
}

CUresult KernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel,
                            CUdevice device) {
  if (kernel == nullptr || device != 0) {
    return Fail(CUDA_ERROR_INVALID_VALUE, "cuKernelSetAttribute needs a kernel and device 0");
  }
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 ||
      static_cast<unsigned>(value) > kMaxSmemPerBlock) {
    return Fail(CUDA_ERROR_INVALID_VALUE, "max dynamic shared memory must be at most " +
                                              std::to_string(kMaxSmemPerBlock) + " bytes, got " +
                                              std::to_string(value));
  }
  const std::lock_guard lock(State().mutex);
  FromHandle(kernel)->max_smem_bytes = static_cast<unsigned>(value);
  return CUDA_SUCCESS;
}

CUresult LaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** params,
                        void** extra) {
  if (config == nullptr || function == nullptr || params == nullptr || params[0] == nullptr) {
    return Fail(CUDA_ERROR_INVALID_VALUE, "a launch needs a configuration, function, parameter");
  }
  if (extra != nullptr) {
    return Fail(CUDA_ERROR_INVALID_VALUE, "parameters come in one way: kernelParams or extra");
  }
  const LoadedKernelImage& image = *FromHandle(function);
  LaunchAttributes attributes;
  CUresult result = ReadAttributes(*config, attributes);
  if (result == CUDA_SUCCESS) result = CheckGeometry(*config, attributes, image);
  if (result != CUDA_SUCCESS) return result;
  try {
    return RunLaunch(*config, attributes, image, params[0]);
  } catch (const std::exception& error) {  // the caller may be C
    return Fail(CUDA_ERROR_OUT_OF_MEMORY, error.what());
  }
}

}  // namespace fp8gemm::sim
