// SPDX-License-Identifier: Apache-2.0
// Kernel cache: many processes and threads on one directory, and processes that stop or die.
//
// Usage: runtime_storm_test race DIR NUM_KEYS SEED | build DIR HOLD_MS | wait DIR PATIENCE_MS
#include <chrono>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "checks.h"
#include "jit/kernel_cache.h"

namespace fp8gemm {
namespace {

using std::chrono::milliseconds;

constexpr int kNumThreads = 8;

std::string ImageOf(int key) { return std::string(20000 + key, static_cast<char>('a' + key % 26)); }

/// All threads ask for all keys, each in an order of its own.
void Race(const std::string& directory, int num_keys, unsigned seed) {
  KernelCache cache;
  cache.SetWarningSink([](std::string warning) { checks::Fail("warning", 0, warning); });
  cache.SetDirectory(directory);
  const auto run = [&](unsigned thread) {
    std::mt19937 random(seed * kNumThreads + thread);
    std::vector<int> keys(num_keys);
    for (int i = 0; i < num_keys; ++i) keys[i] = i;
    std::shuffle(keys.begin(), keys.end(), random);
    for (const int key : keys) {
      const auto image = cache.GetOrBuild("key " + std::to_string(key), "tile", [&] {
        std::this_thread::sleep_for(milliseconds(5));  // long enough for others to come
        return ImageOf(key);
      });
      CHECK(*image == ImageOf(key));
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < kNumThreads; ++i) threads.emplace_back(run, i);
  for (std::thread& thread : threads) thread.join();
  const KernelCache::Counters counters = cache.GetCounters();
  CHECK(counters.corrupt == 0 && counters.write_failures == 0);
  CHECK(counters.builds + counters.disk_hits == static_cast<uint64_t>(num_keys));
  std::printf("%d\n", static_cast<int>(counters.builds));
}

/// Says when the build has begun, and takes its time.
void Build(const std::string& directory, int hold_ms) {
  KernelCache cache;
  cache.SetDirectory(directory);
  cache.GetOrBuild("key 0", "tile", [&] {
    std::printf("building\n");
    std::fflush(stdout);
    std::this_thread::sleep_for(milliseconds(hold_ms));
    return ImageOf(0);
  });
}

/// Prints who built, "this" process or "another", and after how many milliseconds.
void Wait(const std::string& directory, int patience_ms) {
  const auto start = std::chrono::steady_clock::now();
  KernelCache cache{milliseconds(patience_ms)};
  cache.SetDirectory(directory);
  CHECK(*cache.GetOrBuild("key 0", "tile", [] { return ImageOf(0); }) == ImageOf(0));
  const auto waited = std::chrono::steady_clock::now() - start;
  std::printf("%s %d\n", cache.GetCounters().builds == 1 ? "this" : "another",
              static_cast<int>(std::chrono::duration_cast<milliseconds>(waited).count()));
}

}  // namespace
}  // namespace fp8gemm

int main(int argc, char** argv) {
  const std::string mode = argc > 3 ? argv[1] : "";
  if (mode == "race" && argc > 4) {
    fp8gemm::Race(argv[2], std::stoi(argv[3]), static_cast<unsigned>(std::stoi(argv[4])));
  } else if (mode == "build") {
    fp8gemm::Build(argv[2], std::stoi(argv[3]));
  } else if (mode == "wait") {
    fp8gemm::Wait(argv[2], std::stoi(argv[3]));
  } else {
    checks::Fail("usage", 0, "unknown mode '" + mode + "'");
  }
}
