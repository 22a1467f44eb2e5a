// SPDX-License-Identifier: Apache-2.0
// NVRTC: discovery, compilation for sm_90a, and what a user sees when something is wrong.
//
// Usage: runtime_nvrtc_test compile MAJOR PATH | missing [PATH]
//        runtime_nvrtc_test find LOADED CHOSEN MAJOR CANDIDATE...   "" for what there is not
// `find` prints path and identity of what is found, or the error's message.
#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "checks.h"
#include "driver/error.h"
#include "driver/interrupts.h"
#include "jit/nvrtc.h"

namespace fp8gemm {
namespace {

// The header is cut out of a longer text, so it does not end with a zero.
constexpr std::string_view kTypes = "#pragma once\nusing uint64_t = unsigned long;\n#error cut off";
constexpr HeaderText kHeaders[] = {
    {"shared/types.h", kTypes.substr(0, kTypes.find("#error"))},
    {"ptx/wgmma.cuh", R"(#pragma once
#include <shared/types.h>
__device__ inline void wgmma_m64n8k32(float (&d)[4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 "
               "{%0, %1, %2, %3}, %4, %5, 1, 1, 1;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "l"(a), "l"(b));
}
)"},
};
constexpr char kSource[] = R"(
#include <ptx/wgmma.cuh>
extern "C" __global__ void __launch_bounds__(128) tiny(float* out, uint64_t a, uint64_t b) {
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  wgmma_m64n8k32(d, a, b);
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = d[i];
}
)";

CompileRequest Tiny() {
  return {kSource, "tiny.cu", {"--gpu-architecture=sm_90a", "--std=c++20"}, kHeaders};
}

void TestErrors() {
  CompileRequest broken = Tiny();
  broken.source = "#warning harmless\n__global__ void k() { undeclared_name(); }\n";
  std::string message = CHECK_THROWS(CompileError, CompileCubin(broken));
  CHECK_CONTAINS(message, "could not compile tiny.cu (NVRTC_ERROR_COMPILATION):\ntiny.cu(2): ");
  CHECK_CONTAINS(message, "undeclared_name");

  // A long log is cut.
  broken.source = "__global__ void k() {\n";
  for (int i = 0; i < 90; ++i) broken.source += "undeclared_" + std::to_string(i) + "();\n";
  broken.source += "}\n";
  message = CHECK_THROWS(CompileError, CompileCubin(broken));
  CHECK_CONTAINS(message, "more bytes of log");
  CHECK(message.size() < 4000);
  CHECK(message.find('\0') == std::string::npos && message.back() != '\n');

  CompileRequest headless = Tiny();
  headless.headers = {};
  CHECK_CONTAINS(CHECK_THROWS(CompileError, CompileCubin(headless)), "ptx/wgmma.cuh");
  CompileRequest refused = Tiny();
  refused.options.emplace_back("--no-such-option");
  CHECK_CONTAINS(CHECK_THROWS(CompileError, CompileCubin(refused)), "no-such-option");
  CompileRequest ptxas = Tiny();
  ptxas.source = "extern \"C\" __global__ void k() { asm volatile(\"no.such.instruction;\"); }";
  CHECK_CONTAINS(CHECK_THROWS(CompileError, CompileCubin(ptxas)), "ptxas fatal");
  CompileRequest older = Tiny();  // wgmma needs sm_90a: the option of the request is respected
  older.options.front() = "--gpu-architecture=sm_80";
  CHECK_CONTAINS(CHECK_THROWS(CompileError, CompileCubin(older)), "sm_80");
}

// A compilation of this thread is stopped by one that interrupts; the next one is not.
void TestInterrupts() {
  std::atomic<bool> is_over = false;
  std::thread interrupter([&] {
    while (!is_over) {
      InterruptAll();
      std::this_thread::yield();
    }
  });
  CHECK_CONTAINS(CHECK_THROWS(InterruptedError, CompileCubin(Tiny())), "interrupted by Ctrl-C");
  is_over = true;
  interrupter.join();
  CHECK(!CompileCubin(Tiny()).empty());
}

void TestCompile(int major, const std::string& path) {
  SetNvrtcSearch({.candidates = {"/nonexistent/libnvrtc.so.99", path}});
  CHECK(Nvrtc().major == major);
  CHECK(Nvrtc().path == path);
  std::vector<std::string> cubins(2);
  std::vector<std::thread> threads;
  for (std::string& cubin : cubins) {
    threads.emplace_back([&cubin] { cubin = CompileCubin(Tiny()); });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(cubins[0].starts_with("\x7f"
                              "ELF") &&
        cubins[0] == cubins[1]);
  CHECK_CONTAINS(cubins[0], "tiny");
  TestErrors();
  TestInterrupts();
}

void Find(int argc, char** argv) {
  const std::string loaded = argv[0];
  if (!loaded.empty()) CHECK(dlopen(loaded.c_str(), RTLD_NOW | RTLD_LOCAL) != nullptr);
  SetNvrtcSearch({.chosen = argv[1],
                  .major = std::stoi(argv[2]),
                  .candidates = std::vector<std::string>(argv + 3, argv + argc)});
  try {
    std::printf("%s\n", Nvrtc().path.c_str());
    std::printf("%s\n", Nvrtc().identity.c_str());
  } catch (const UnsupportedError& error) {
    std::printf("%s\n", error.what());
  }
}

void TestMissing(const char* path) {
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, Nvrtc()), "no place to look in");
  SetNvrtcSearch({.candidates = {"/nonexistent/libnvrtc.so.13", "libm.so.6"}});
  const std::string message = CHECK_THROWS(UnsupportedError, CompileCubin(Tiny()));
  CHECK_CONTAINS(message, "/nonexistent/libnvrtc.so.13");
  CHECK_CONTAINS(message, "libm.so.6 is not NVRTC");
  CHECK_CONTAINS(message, "pip install --upgrade \"jax[cuda13]\"");
  if (path == nullptr) return;
  SetNvrtcSearch({.candidates = {path}});  // the failure was not kept
  CHECK(Nvrtc().major >= 12);
}

}  // namespace
}  // namespace fp8gemm

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "compile" && argc == 4) {
    fp8gemm::TestCompile(std::stoi(argv[2]), argv[3]);
  } else if (mode == "find" && argc >= 5) {
    fp8gemm::Find(argc - 2, argv + 2);
  } else if (mode == "missing") {
    fp8gemm::TestMissing(argc > 2 ? argv[2] : nullptr);
  } else {
    checks::Fail("usage", 0, "unknown mode '" + mode + "'");
  }
}
