// SPDX-License-Identifier: Apache-2.0
// The simulated driver enforces what the real one documents, and says which rule was broken.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <thread>

#include "sim_harness.h"

namespace sim_test {
namespace {

using namespace fp8gemm;

void DoNothing(const void*) {}

std::atomic<bool> is_inside = false, may_leave = false;
void Linger(const void*) {
  is_inside = true;
  while (!may_leave) std::this_thread::yield();
}

const sim::SimKernel kKernels[] = {
    {"idle", &DoNothing, 4, 128, 2, 60000, 128, nullptr},
    {"crowded", &DoNothing, 4, 1152, 1, 0, 32, nullptr},
    {"greedy", &DoNothing, 4, 512, 1, 0, 129, nullptr},
    {"lingering", &Linger, 4, 128, 1, 0, 32, nullptr},
};
const sim::KernelTable kTable(kKernels);

const DriverApi& Api() { return *Fp8GemmSimDriver(); }

// ---- Device -------------------------------------------------------------------------------------

int Attribute(CUdevice_attribute attribute) {
  int value = -1;
  CHECK(Api().cuDeviceGetAttribute(&value, attribute, 0) == CUDA_SUCCESS);
  return value;
}

void TestDevice() {
  CHECK(Api().cuInit(0) == CUDA_SUCCESS);
  int device = -1;
  CHECK(Api().cuCtxGetDevice(&device) == CUDA_SUCCESS && device == 0);
  sim::SimOptions options;
  options.num_sms = 7;
  Fp8GemmSimSetOptions(&options);
  CHECK(Attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) == 7);
  CHECK(Attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) == 9);
  CHECK(Attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) == 0);
  CHECK(Attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) == 232448);
  int value;
  CHECK(Api().cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 1) ==
        CUDA_ERROR_INVALID_DEVICE);
  char name[8];
  CHECK(Api().cuDeviceGetName(name, sizeof name, 0) == CUDA_SUCCESS);
  CHECK(std::string(name) == "fp8gemm");
  const char* text;
  CHECK(Api().cuGetErrorName(CUDA_ERROR_LAUNCH_FAILED, &text) == CUDA_SUCCESS);
  CHECK(std::string(text) == "CUDA_ERROR_LAUNCH_FAILED");
}

// ---- Images -------------------------------------------------------------------------------------

CUresult Load(const char* image) {
  CUlibrary library;
  return Api().cuLibraryLoadData(&library, image, nullptr, nullptr, 0, nullptr, nullptr, 0);
}

void TestImages() {
  CHECK(Load("\x7f"
             "ELF") == CUDA_ERROR_INVALID_IMAGE);
  CHECK(Load("fp8gemm-sim\nidle") == CUDA_ERROR_INVALID_IMAGE);
  CHECK(Load("fp8gemm-sim\nother\n") == CUDA_ERROR_NOT_FOUND);
  CHECK_CONTAINS(Api().last_report(), "without kernel other");
  CHECK(Load(nullptr) == CUDA_ERROR_INVALID_VALUE);
}

// ---- Launches -----------------------------------------------------------------------------------

// The result of a launch that differs from a good one in what `change` does.
template <typename Change>
CUresult LaunchChanged(Change change) {
  Geometry geometry = {4, 128, 2, 60000};
  change(geometry);
  uint32_t params = 0;
  return Launch("idle", geometry, &params);
}

void TestLaunches() {
  CHECK(LaunchChanged([](Geometry&) {}) == CUDA_SUCCESS);
  CHECK(LaunchChanged([](Geometry& g) { g.grid = 3; }) == CUDA_ERROR_INVALID_VALUE);
  CHECK_CONTAINS(Api().last_report(), "multiple of the cluster");
  CHECK(LaunchChanged([](Geometry& g) { g.grid = 0; }) == CUDA_ERROR_INVALID_VALUE);
  CHECK(LaunchChanged([](Geometry& g) { g.threads = 256; }) == CUDA_ERROR_INVALID_VALUE);
  CHECK_CONTAINS(Api().last_report(), "threads the kernel is built for: got 256");
  CHECK(LaunchChanged([](Geometry& g) { g.cluster = 1; }) == CUDA_ERROR_INVALID_CLUSTER_SIZE);
  CHECK(LaunchChanged([](Geometry& g) { g.cluster = 16; }) == CUDA_ERROR_INVALID_CLUSTER_SIZE);
  CHECK(LaunchChanged([](Geometry& g) { g.smem_bytes = 59999; }) == CUDA_ERROR_INVALID_VALUE);
  CHECK_CONTAINS(Api().last_report(), "shared memory the kernel addresses");
}

// What one CTA may have, of kernels that ask for too much.
void TestResources() {
  uint32_t params = 0;
  CHECK(Launch("crowded", {1, 1152, 1, 0}, &params) == CUDA_ERROR_INVALID_VALUE);
  CHECK_CONTAINS(Api().last_report(), "threads per CTA: got 1152");
  CHECK(Launch("greedy", {1, 512, 1, 0}, &params) == CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
  CHECK_CONTAINS(Api().last_report(), "registers per CTA: got 69632");
}

// "idle" as a function, with a configuration that it accepts.
struct Idle {
  Idle() {
    CUkernel kernel;
    CHECK(Api().cuLibraryLoadData(&library, "fp8gemm-sim\nidle\n", nullptr, nullptr, 0, nullptr,
                                  nullptr, 0) == CUDA_SUCCESS);
    CHECK(Api().cuLibraryGetKernel(&kernel, library, "kernel") == CUDA_SUCCESS);
    CHECK(Api().cuKernelGetFunction(&function, kernel) == CUDA_SUCCESS);
    CHECK(Api().cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 60000, kernel,
                                     0) == CUDA_SUCCESS);
    cluster.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    cluster.value.clusterDim = {2, 1, 1};
    config = {2, 1, 1, 128, 1, 1, 60000, nullptr, &cluster, 1};
  }
  Idle(const Idle&) = delete;
  ~Idle() { CHECK(Api().cuLibraryUnload(library) == CUDA_SUCCESS); }

  CUresult Launch(void** extra = nullptr) {
    uint32_t params = 0;
    void* kernel_params[] = {&params};
    return Api().cuLaunchKernelEx(&config, function, kernel_params, extra);
  }

  CUlibrary library;
  CUfunction function;
  CUlaunchAttribute cluster = {};
  CUlaunchConfig config;
};

void TestLaunchArguments() {
  Idle idle;
  CHECK(idle.Launch() == CUDA_SUCCESS);
  void* extra[] = {nullptr};
  CHECK(idle.Launch(extra) == CUDA_ERROR_INVALID_VALUE);
  CHECK_CONTAINS(Api().last_report(), "kernelParams or extra");
  idle.config.gridDimX = 1u << 31;
  CHECK(idle.Launch() == CUDA_ERROR_INVALID_VALUE);
  CHECK_CONTAINS(Api().last_report(), "CTAs per grid");
  idle.config.gridDimX = 2;
  idle.config.gridDimY = 2;
  CHECK(idle.Launch() == CUDA_ERROR_INVALID_VALUE);
  CHECK_CONTAINS(Api().last_report(), "one-dimensional, not empty");
  idle.config.gridDimY = 1;
  idle.config.attrs = nullptr;
  CHECK(idle.Launch() == CUDA_ERROR_INVALID_VALUE);
  CHECK_CONTAINS(Api().last_report(), "attributes must not be null");
}

void TestLaunchAttributes() {
  Idle idle;
  idle.cluster.value.clusterDim = {1, 2, 1};
  CHECK(idle.Launch() == CUDA_ERROR_INVALID_CLUSTER_SIZE);
  CHECK_CONTAINS(Api().last_report(), "clusters must be one-dimensional");
  idle.cluster.id = static_cast<CUlaunchAttributeID>(63);
  CHECK(idle.Launch() == CUDA_ERROR_INVALID_VALUE);
  CHECK_CONTAINS(Api().last_report(), "launch attribute 63");
}

void TestOccupancy() {
  Idle idle;
  int clusters = 0;
  const auto ask = [&] {
    return Api().cuOccupancyMaxActiveClusters(&clusters, idle.function, &idle.config);
  };
  CHECK(ask() == CUDA_SUCCESS && clusters == 3);  // on 7 SMs
  sim::SimOptions options;
  options.num_sms = 1;
  Fp8GemmSimSetOptions(&options);
  CHECK(ask() == CUDA_SUCCESS && clusters == 1);
  idle.config.numAttrs = 0;
  CHECK(ask() == CUDA_ERROR_INVALID_VALUE);
  CHECK_CONTAINS(Api().last_report(), "needs the size of a cluster");
}

void TestSmemAttribute() {
  CUlibrary library;
  CUkernel kernel;
  CHECK(Api().cuLibraryLoadData(&library, "fp8gemm-sim\nidle\n", nullptr, nullptr, 0, nullptr,
                                nullptr, 0) == CUDA_SUCCESS);
  CHECK(Api().cuLibraryGetKernel(&kernel, library, "kernel") == CUDA_SUCCESS);
  const auto attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
  CHECK(Api().cuKernelSetAttribute(attribute, 232448, kernel, 0) == CUDA_SUCCESS);
  CHECK(Api().cuKernelSetAttribute(attribute, 232449, kernel, 0) == CUDA_ERROR_INVALID_VALUE);
  CHECK(Api().cuKernelSetAttribute(attribute, -1, kernel, 0) == CUDA_ERROR_INVALID_VALUE);
  CHECK(Api().cuLibraryUnload(library) == CUDA_SUCCESS);
}

// Without the attribute a kernel may have 48 KiB.
void TestSmemDefault() {
  CUlibrary library;
  CHECK(Api().cuLibraryLoadData(&library, "fp8gemm-sim\nidle\n", nullptr, nullptr, 0, nullptr,
                                nullptr, 0) == CUDA_SUCCESS);
  CUlaunchAttribute cluster = {};
  cluster.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
  cluster.value.clusterDim = {2, 1, 1};
  CUlaunchConfig config = {2, 1, 1, 128, 1, 1, 60000, nullptr, &cluster, 1};
  uint32_t params = 0;
  void* kernel_params[] = {&params};
  CUkernel kernel;
  CUfunction function;
  CHECK(Api().cuLibraryGetKernel(&kernel, library, "kernel") == CUDA_SUCCESS);
  CHECK(Api().cuKernelGetFunction(&function, kernel) == CUDA_SUCCESS);
  CHECK(Api().cuLaunchKernelEx(&config, function, kernel_params, nullptr) ==
        CUDA_ERROR_INVALID_VALUE);
  CHECK_CONTAINS(Api().last_report(), "allowed by the kernel's attribute");
  CHECK(Api().cuLibraryUnload(library) == CUDA_SUCCESS);
}

// ---- Tensor maps --------------------------------------------------------------------------------

// Arguments of cuTensorMapEncodeTiled that it accepts, to be spoilt one at a time.
struct EncodeArguments {
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  uint32_t rank = 2;
  uint64_t base = 4096;
  uint64_t dims[3] = {256, 64, 2};
  uint64_t strides[2] = {256, 64 * 256};
  uint32_t box[3] = {128, 64, 1};
  uint32_t element_strides[3] = {1, 1, 1};
  int interleave = 0;
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
  int l2_promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
  int fill = CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
  int map_shift = 0;
  bool has_dims = true;
};

template <typename Change>
CUresult EncodeChanged(Change change) {
  EncodeArguments arguments;
  change(arguments);
  alignas(64) static uint8_t memory[sizeof(CUtensorMap) + 64];
  return Api().cuTensorMapEncodeTiled(
      reinterpret_cast<CUtensorMap*>(memory + arguments.map_shift), arguments.type, arguments.rank,
      reinterpret_cast<void*>(arguments.base), arguments.has_dims ? arguments.dims : nullptr,
      arguments.strides, arguments.box, arguments.element_strides,
      static_cast<CUtensorMapInterleave>(arguments.interleave), arguments.swizzle,
      static_cast<CUtensorMapL2promotion>(arguments.l2_promotion),
      static_cast<CUtensorMapFloatOOBfill>(arguments.fill));
}

template <typename Change>
void Rejects(const char* rule, Change change) {
  CHECK(EncodeChanged(change) == CUDA_ERROR_INVALID_VALUE);
  CHECK_CONTAINS(Api().last_report(), rule);
}

using Args = EncodeArguments;

void TestMapExtents() {
  CHECK(EncodeChanged([](Args&) {}) == CUDA_SUCCESS);
  CHECK(EncodeChanged([](Args& a) { a.rank = 3; }) == CUDA_SUCCESS);
  CHECK(EncodeChanged([](Args& a) { a.dims[1] = uint64_t{1} << 31; }) == CUDA_SUCCESS);
  Rejects("1 to 2^31", [](Args& a) { a.dims[1] = (uint64_t{1} << 31) + 1; });
  Rejects("1 to 2^31", [](Args& a) { a.dims[0] = 0; });
  CHECK(EncodeChanged([](Args& a) { a.box[1] = 256; }) == CUDA_SUCCESS);
  Rejects("box extent must be 1 to 256", [](Args& a) { a.box[1] = 257; });
  Rejects("box extent must be 1 to 256", [](Args& a) { a.box[1] = 0; });
  Rejects("element strides", [](Args& a) { a.element_strides[1] = 2; });
  Rejects("multiple of 16 bytes", [](Args& a) { a.strides[0] = 264; });
  Rejects("less than 2^40", [](Args& a) { a.strides[0] = uint64_t{1} << 40; });
  Rejects("cover the dimension", [](Args& a) { a.strides[0] = 240; });
  Rejects("cover the dimension", [](Args& a) { a.rank = 3, a.strides[1] = 63 * 256; });
  Rejects("multiple of 16 bytes", [](Args& a) { a.box[0] = 120; });
}

void TestMapSwizzles() {
  Rejects("swizzle span", [](Args& a) { a.swizzle = CU_TENSOR_MAP_SWIZZLE_64B; });
  Rejects("swizzle span", [](Args& a) { a.box[0] = 144; });
  CHECK(EncodeChanged([](Args& a) { a.box[0] = 256, a.swizzle = CU_TENSOR_MAP_SWIZZLE_NONE; }) ==
        CUDA_SUCCESS);
  Rejects("swizzle must be", [](Args& a) { a.swizzle = static_cast<CUtensorMapSwizzle>(4); });
}

void TestMapOthers() {
  Rejects("rank", [](Args& a) { a.rank = 1; });
  Rejects("rank", [](Args& a) { a.rank = 4; });
  Rejects("data type", [](Args& a) { a.type = CU_TENSOR_MAP_DATA_TYPE_FLOAT64; });
  Rejects("base must be aligned", [](Args& a) { a.base += 8; });
  Rejects("base must be aligned", [](Args& a) { a.base = 0; });
  Rejects("map must be aligned", [](Args& a) { a.map_shift = 32; });
  Rejects("interleave", [](Args& a) { a.interleave = 1; });
  Rejects("unknown L2 promotion", [](Args& a) { a.l2_promotion = 4; });
  Rejects("out-of-bounds fill", [](Args& a) { a.fill = 1; });
  Rejects("arrays must not be null", [](Args& a) { a.has_dims = false; });
}

// ---- Forks --------------------------------------------------------------------------------------

/// Launches the idle kernel in a forked child; what the child exits with.
template <typename Body>
int InChild(Body body) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) _exit(body());
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
  return WEXITSTATUS(status);
}

void TestFork() {
  int param = 0;
  const Geometry idle = {2, 128, 2, 60000}, lingering = {1, 128, 1, 0};
  CHECK(InChild([&] { return Launch("idle", idle, &param) == CUDA_SUCCESS ? 0 : 1; }) == 0);

  std::thread thread([&] { CHECK(Launch("lingering", lingering, &param) == CUDA_SUCCESS); });
  while (!is_inside) std::this_thread::yield();
  const int child = InChild([&] {
    alarm(20);  // ends a child that waits for a thread that it does not have
    sim::SimOptions options;
    Fp8GemmSimSetOptions(&options);
    if (Launch("idle", idle, &param) != CUDA_ERROR_NOT_SUPPORTED) return 1;
    CHECK_CONTAINS(Api().last_report(), "was forked while its parent simulated");
    return InChild([&] { return Launch("idle", idle, &param) == CUDA_SUCCESS ? 1 : 0; });
  });
  may_leave = true;
  thread.join();
  CHECK(child == 0);
  CHECK(Launch("idle", idle, &param) == CUDA_SUCCESS);
}

}  // namespace
}  // namespace sim_test

int main() {
  sim_test::TestDevice();
  sim_test::TestImages();
  sim_test::TestLaunches();
  sim_test::TestResources();
  sim_test::TestLaunchArguments();
  sim_test::TestLaunchAttributes();
  sim_test::TestOccupancy();
  sim_test::TestSmemAttribute();
  sim_test::TestSmemDefault();
  sim_test::TestMapExtents();
  sim_test::TestMapSwizzles();
  sim_test::TestMapOthers();
  sim_test::TestFork();
  std::puts("ok");
  return 0;
}
