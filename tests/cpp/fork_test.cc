// SPDX-License-Identifier: Apache-2.0
// Forks while other threads hold a lock: the child finds it free, and what it guards whole.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "checks.h"
#include "driver/driver.h"
#include "driver/error.h"
#include "driver/fork_mutex.h"
#include "driver/interrupts.h"
#include "fake_driver.h"
#include "jit/headers.h"
#include "jit/kernel.h"
#include "jit/kernel_cache.h"
#include "jit/nvrtc.h"

namespace fp8gemm {

// The simulator has its kernels built in.
std::span<const HeaderText> EmbeddedHeaders() { return {}; }

namespace {

/// Runs `body` in a forked child; fails unless it returns within seconds.
void InChild(const char* name, const std::function<void()>& body) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(20);
    body();
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  if (status != 0) checks::Fail(name, 0, "the child ended with status " + std::to_string(status));
}

/// Runs `body` again and again on other threads, and in children that are forked meanwhile.
void TestLock(const char* name, const std::function<void()>& body) {
  std::atomic<int> num_runs = 0;
  std::atomic<bool> is_over = false;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      for (; !is_over; ++num_runs) body();
    });
  }
  while (num_runs < 10) std::this_thread::yield();
  for (int i = 0; i < 100; ++i) InChild(name, body);
  is_over = true;
  for (std::thread& thread : threads) thread.join();
}

void TestEachLock() {
  SetSimLibraryPath("/nonexistent/libsim.so");
  TestLock("SimDriver", [] { CHECK_THROWS(UnsupportedError, SimDriver()); });
  TestLock("SetSimLibraryPath", [] { SetSimLibraryPath("/nonexistent/libsim.so"); });
  TestLock("Nvrtc", [] { CHECK_THROWS(UnsupportedError, Nvrtc()); });
  TestLock("SetNvrtcSearch",
           [] { SetNvrtcSearch({.candidates = {"/nonexistent/libnvrtc.so.1"}}); });

  std::signal(SIGINT, [](int) {});
  TestLock("WatchInterrupts", [] { WatchInterrupts(); });
  SetInterruptRule([] { return true; });
  TestLock("WasInterrupted", [] {
    const uint64_t mark = WatchInterrupts();
    std::raise(SIGINT);
    while (!WasInterrupted(mark)) std::this_thread::yield();
  });

  std::atomic<int> count = 0;
  TestLock("Kernel::Shared", [&] {
    const std::string key = std::to_string(count++ % 1000);
    CHECK(&Kernel::Shared(Backend::kSim, {.key = key, .name = "k", .text = ""}) ==
          &Kernel::Shared(Backend::kSim, {.key = key, .name = "k", .text = ""}));
  });
  Kernel kernel([]() -> const DriverApi& { return api; }, {.key = "k", .name = "k", .text = ""},
                std::make_shared<const std::string>("image"));
  fake.load_result = CUDA_ERROR_OUT_OF_MEMORY;
  TestLock("Kernel::Load", [&] { CHECK_THROWS(CudaError, kernel.Load()); });
  TestLock("Kernel", [] {
    Kernel another([]() -> const DriverApi& { return api; }, {.key = "", .name = "", .text = ""},
                   {});
  });
  TestLock("KernelCache", [] {
    CHECK(*ProcessKernelCache().GetOrBuild("key", "k", [] { return std::string("image"); }) ==
          "image");
  });
}

// Two holders, of which one lets go when it is let: fork() waits for the other alone.
void TestHolders() {
  bool was_told = false, is_whole = true;
  ForkMutex brief, endless([&] { was_told = true; });
  std::atomic<int> num_holding = 0;
  std::atomic<bool> is_over = false;
  std::thread brief_holder([&] {
    const std::lock_guard lock(brief);
    is_whole = false;
    ++num_holding;
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    is_whole = true;
  });
  std::thread endless_holder([&] {
    const std::lock_guard lock(endless);
    ++num_holding;
    while (!is_over) std::this_thread::yield();
  });
  while (num_holding < 2) std::this_thread::yield();
  InChild("TestHolders", [&] {
    const std::lock_guard first(brief), second(endless);
    CHECK(is_whole && was_told);
  });
  CHECK(!was_told);
  is_over = true;
  brief_holder.join();
  endless_holder.join();
  const std::lock_guard first(brief), second(endless);
}

// One that the forking thread holds is not waited for, and is the child's to let go.
void TestOwn() {
  ForkMutex own;
  std::unique_lock lock(own);
  const auto begin = std::chrono::steady_clock::now();
  InChild("TestOwn", [&] {
    lock.unlock();
    const std::lock_guard again(own);
  });
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(1));
}

}  // namespace
}  // namespace fp8gemm

int main() {
  fp8gemm::TestOwn();
  fp8gemm::TestHolders();
  fp8gemm::TestEachLock();
}
