// SPDX-License-Identifier: Apache-2.0
// Driver tables, device limits, tensor maps and launches against a driver that records its calls.
//
// Usage: runtime_driver_test fake NVRTC | load BROKEN OLD NO_DEVICE | cuda | no-cuda | sim LIBRARY
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "checks.h"
#include "driver/device_limits.h"
#include "driver/driver.h"
#include "driver/error.h"
#include "driver/interrupts.h"
#include "driver/tensor_map.h"
#include "fake_driver.h"
#include "jit/headers.h"
#include "jit/kernel.h"
#include "jit/nvrtc.h"

namespace fp8gemm {

// In the place of what the build embeds.
std::span<const HeaderText> EmbeddedHeaders() { return {}; }

namespace {

void TestCheck() {
  Check(api, CUDA_SUCCESS, "cuInit");
  CHECK_CONTAINS(CHECK_THROWS(CudaError, Check(api, CUDA_ERROR_INVALID_VALUE, "cuInit")),
                 "cuInit failed with CUDA_ERROR_INVALID_VALUE (1): invalid argument");
  fake.report = "CTA 3: deadlock";
  CHECK_CONTAINS(CHECK_THROWS(CudaError, Check(api, static_cast<CUresult>(4711), "cuInit")),
                 "unknown error (4711): no description\nCTA 3: deadlock");
  fake.report = nullptr;
}

void TestLimits() {
  const DeviceLimits limits = ReadLimits(api, 3);
  CHECK(limits.ordinal == 3 && limits.sm_count == 129 && limits.smem_bytes_per_block == 232448);
  CHECK(limits.cc_major == 9 && limits.cc_minor == 0 && limits.name == "Fake H100");
  fake.cc_major = 8;
  const std::string message = CHECK_THROWS(UnsupportedError, ReadLimits(api, 4));
  CHECK_CONTAINS(message, "Device 4 (Fake H100) has compute capability 8.0");
  CHECK_CONTAINS(message, "sm_90a");
  fake.cc_major = 9;
}

void TestTensorMap() {
  const TensorMapSpec spec{"a",
                           CU_TENSOR_MAP_DATA_TYPE_UINT8,
                           HandleOf<void*>(0x10),
                           4096,
                           77,
                           4112,
                           128,
                           64,
                           CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B};
  CHECK(Encode2d(api, spec).opaque[15] == 42);
  CHECK((fake.map == std::vector<uint64_t>{0, 2, 0x10, 4096, 77, 4112, 128, 64, 1, 1, 0, 3, 3, 0}));
  const auto refusal_at = [&](uintptr_t address) {
    TensorMapSpec moved = spec;
    moved.base = HandleOf<void*>(address);
    return CHECK_THROWS(std::invalid_argument, Encode2d(api, moved));
  };
  CHECK_CONTAINS(refusal_at(0), "tensor map of a: base must not be null");
  CHECK_CONTAINS(refusal_at(0x408),
                 "tensor map of a: base must be a multiple of 16 bytes, also of a");
  fake.result = CUDA_ERROR_INVALID_VALUE;
  CHECK_CONTAINS(CHECK_THROWS(CudaError, Encode2d(api, spec)),
                 "cuTensorMapEncodeTiled of a failed");
  fake.result = CUDA_SUCCESS;
}

KernelImage Image() { return std::make_shared<const std::string>("cubin"); }

Kernel MakeKernel(KernelImage image, const char* name, unsigned smem_bytes, unsigned threads,
                  unsigned cluster = 1, bool pdl = false) {
  const KernelSource source{.key = name,
                            .name = name,
                            .text = "",
                            .threads = threads,
                            .smem_bytes = smem_bytes,
                            .cluster = cluster,
                            .pdl = pdl};
  return Kernel([]() -> const DriverApi& { return api; }, source, std::move(image));
}

void TestLaunch() {
  int param = 0;
  auto* stream = HandleOf<CUstream>(2);
  const Kernel::Loaded loaded{.function = HandleOf<CUfunction>(1)};
  const Kernel large = MakeKernel(Image(), "large", 200000, 384, 2, true);
  large.Launch(loaded, 132, stream, &param);
  const CUlaunchConfig& config = fake.config;
  CHECK(config.gridDimX == 132 && config.gridDimY == 1 && config.gridDimZ == 1);
  CHECK(config.blockDimX == 384 && config.blockDimY == 1 && config.blockDimZ == 1);
  CHECK(config.sharedMemBytes == 200000 && config.hStream == stream && fake.param == &param);
  CHECK(fake.attributes.size() == 2);
  const auto& cluster = fake.attributes[0];
  CHECK(cluster.id == 4 && cluster.value.clusterDim.x == 2);
  CHECK(cluster.value.clusterDim.y == 1 && cluster.value.clusterDim.z == 1);
  CHECK(fake.attributes[1].id == 6);
  CHECK(fake.attributes[1].value.programmaticStreamSerializationAllowed == 1);
  MakeKernel(Image(), "tiny", 0, 128, 1, true).Launch(loaded, 7, stream, &param);
  CHECK(fake.attributes.size() == 1 && fake.attributes[0].id == 6);
  const Kernel kernel = MakeKernel(Image(), "tiny", 0, 128);
  kernel.Launch(loaded, 7, stream, &param);
  CHECK(fake.attributes.empty());
  fake.result = CUDA_ERROR_INVALID_VALUE;
  CHECK_CONTAINS(CHECK_THROWS(CudaError, kernel.Launch(loaded, 1, stream, &param)),
                 "cuLaunchKernelEx failed");
  fake.result = CUDA_SUCCESS;
}

// A launch that fails although nothing is wrong with it, since Ctrl-C has stopped it.
void TestInterruptedLaunch() {
  static const DriverApi sim = [] {
    DriverApi table = api;
    table.set_interrupts = [](uint64_t (*)(), bool (*)(uint64_t)) {};
    table.cuLaunchKernelEx = [](const CUlaunchConfig*, CUfunction, void**, void**) {
      if (fake.result != CUDA_SUCCESS) InterruptAll();
      return fake.result;
    };
    return table;
  }();
  const auto image = std::make_shared<const std::string>("image");
  const Kernel kernel([]() -> const DriverApi& { return sim; },
                      {.key = "tiny", .name = "tiny", .text = "", .threads = 32}, image);
  const Kernel::Loaded loaded = {HandleOf<CUfunction>(1), 132, 132};
  int param = 0;
  InterruptAll();  // before it
  kernel.Launch(loaded, 1, nullptr, &param);
  fake.result = CUDA_ERROR_LAUNCH_FAILED;
  CHECK_CONTAINS(CHECK_THROWS(InterruptedError, kernel.Launch(loaded, 1, nullptr, &param)),
                 "Ctrl-C");
  fake.result = CUDA_SUCCESS;
}

void TestClusters() {
  Kernel pair = MakeKernel(Image(), "tiny", 0, 128, 2, true);
  fake.max_clusters = 0;
  const std::string message = CHECK_THROWS(UnsupportedError, pair.Load());
  CHECK_CONTAINS(message, "clusters of 2 CTAs, and device 0 (Fake H100) has no room for one");
  fake.max_clusters = 65;
  const Kernel::Loaded& loaded = pair.Load();
  CHECK(loaded.max_clusters == 65 && loaded.sm_count == fake.sm_count);
  Kernel single = MakeKernel(Image(), "tiny", 0, 128);
  const int code_loads = fake.code_loads;
  CHECK(single.Load().max_clusters == fake.sm_count && fake.code_loads == code_loads + 1);
}

void TestModule() {
  const KernelImage image = Image();
  {
    Kernel kernel = MakeKernel(image, "tiny", 200000, 384);
    CHECK(fake.loads == 0);
    fake.result = CUDA_ERROR_INVALID_VALUE;  // no context
    CHECK_CONTAINS(CHECK_THROWS(CudaError, kernel.Load()), "cuCtxGetDevice failed");
    fake.result = CUDA_SUCCESS;
    const auto load = [&kernel](CUdevice device) {
      thread_device = device;
      for (int i = 0; i < 100; ++i) {
        const Kernel::Loaded& loaded = kernel.Load();
        CHECK(loaded.function == HandleOf<CUfunction>(0x1000u + device));
        CHECK(loaded.sm_count == 132 - device);
      }
    };
    std::vector<std::thread> threads;
    for (CUdevice device = 0; device < 8; ++device) threads.emplace_back(load, device % 4);
    for (std::thread& thread : threads) thread.join();
    CHECK(fake.loads == 1 && fake.resolves == 4);
    CHECK(fake.image == "cubin" && fake.smem_bytes == 200000);
    fake.device = 64;
    CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, kernel.Load()), "ordinal 64");
    fake.device = 0;
  }
  CHECK(fake.unloads == 1);
  {
    Kernel kernel = MakeKernel(image, "missing", 0, 128);
    CHECK_CONTAINS(CHECK_THROWS(CudaError, kernel.Load()), "cuLibraryGetKernel failed");
  }
  Kernel greedy = MakeKernel(image, "tiny", 232449, 384);
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, greedy.Load()),
                 "needs 232449 bytes of shared memory per block");
  CHECK(fake.loads == 2 && fake.unloads == 2);
}

// What an NVRTC of version 13.5 has compiled.
void TestRefusedImage(const char* nvrtc) {
  SetNvrtcSearch({.chosen = nvrtc});
  const std::string refusal =
      std::string("which is for CUDA 12.8, refuses the kernel that NVRTC 13.5 (") + nvrtc + ")";
  const KernelImage image = Image();
  for (const CUresult result :
       {CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_NO_BINARY_FOR_GPU, CUDA_ERROR_INVALID_PTX,
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION, CUDA_ERROR_INVALID_SOURCE}) {
    fake.load_result = result;
    Kernel kernel = MakeKernel(image, "tiny", 0, 128);
    const std::string message = CHECK_THROWS(UnsupportedError, kernel.Load());
    CHECK_CONTAINS(message, refusal.c_str());
    CHECK_CONTAINS(message, ("(cuLibraryLoadData: " + std::to_string(result) + ")").c_str());
    CHECK_CONTAINS(message, "name an NVRTC of CUDA 12 with JAX_FP8GEMM_NVRTC, e.g. that of");
    CHECK_CONTAINS(message, ", or update the driver.");
    fake.load_result = CUDA_SUCCESS;
    CHECK(kernel.Load().function != nullptr);  // the refusal was not kept
  }
  Kernel lazy = MakeKernel(image, "tiny", 0, 128);
  fake.get_function_result = CUDA_ERROR_NO_BINARY_FOR_GPU;
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, lazy.Load()), "cuKernelGetFunction");
  fake.get_function_result = CUDA_SUCCESS;
  fake.get_attribute_result = CUDA_ERROR_NO_BINARY_FOR_GPU;
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, lazy.Load()), "cuFuncGetAttribute");
  fake.get_attribute_result = CUDA_SUCCESS;
  // Of the same major version it is the compiler that is too new, not the driver too old.
  Kernel newer = MakeKernel(image, "tiny", 0, 128);
  fake.get_function_result = CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
  fake.driver_version = 13000;
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, newer.Load()),
                 "`pip install \"nvidia-cuda-nvrtc==13.0.*\"`, or update the driver.");
  fake.get_function_result = CUDA_ERROR_NO_BINARY_FOR_GPU;
  // A newer driver refuses for some other reason, as does any that is out of memory.
  fake.driver_version = 13050;
  CHECK_CONTAINS(CHECK_THROWS(CudaError, lazy.Load()), "failed with");
  fake.driver_version = 12080;
  fake.get_function_result = static_cast<CUresult>(2);
  CHECK_CONTAINS(CHECK_THROWS(CudaError, lazy.Load()), "failed with");
  fake.get_function_result = CUDA_SUCCESS;
}

void TestLoad(char** libraries) {
  const std::string absent =
      CHECK_THROWS(UnsupportedError, LoadCudaDriver("libcuda_that_is_absent.so.1"));
  CHECK_CONTAINS(absent, "libcuda_that_is_absent.so.1");
  CHECK_CONTAINS(absent, "install an NVIDIA driver");
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, LoadCudaDriver(libraries[0])), "cannot be loaded");
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, LoadCudaDriver(libraries[1])),
                 "no cuTensorMapEncodeTiled; install driver 525 or newer");
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, LoadCudaDriver(libraries[2])),
                 "no usable GPU (cuInit: CUDA_ERROR_NO_DEVICE)");
}

void TestSim(const char* library) {
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, SimDriver()), "is not set");
  SetSimLibraryPath("/nonexistent/libsim.so");
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, SimDriver()), "/nonexistent/libsim.so");
  SetSimLibraryPath("libm.so.6");
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, SimDriver()), "libm.so.6 is not the CPU simulator");
  SetSimLibraryPath(library);
  const DriverApi& sim = SimDriver();
  int version = 0;
  CHECK(sim.cuDriverGetVersion(&version) == CUDA_SUCCESS && version == 13000);
  CHECK(&SimDriver() == &sim);
}

}  // namespace
}  // namespace fp8gemm

int main(int argc, char** argv) {
  using namespace fp8gemm;
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "fake" && argc == 3) {
    TestCheck();
    TestLimits();
    TestTensorMap();
    TestLaunch();
    TestInterruptedLaunch();
    TestModule();
    TestRefusedImage(argv[2]);
    TestClusters();
  } else if (mode == "load" && argc == 5) {
    TestLoad(argv + 2);
  } else if (mode == "cuda") {
    CHECK(CudaDriver().cuLaunchKernelEx != nullptr && &CudaDriver() == &CudaDriver());
  } else if (mode == "no-cuda") {
    CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, CudaDriver()), "libcuda.so.1");
    CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, CudaDriver()), "install an NVIDIA driver");
  } else if (mode == "sim" && argc == 3) {
    TestSim(argv[2]);
  } else {
    checks::Fail("usage", 0, "unknown mode '" + mode + "'");
  }
}
