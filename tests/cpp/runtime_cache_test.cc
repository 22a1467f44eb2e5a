// SPDX-License-Identifier: Apache-2.0
// Kernel cache: single flight, damaged entries, disks that cannot be written, many processes.
//
// Usage: runtime_cache_test threads | disk DIR | foreign DIR | unwritable DIR | full DIR
//                           | room DIR | refusing DIR REASON | worker DIR NUM_KEYS [LIMIT_BYTES]
#include <sys/resource.h>
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "checks.h"
#include "jit/fnv1a.h"
#include "jit/kernel_cache.h"

namespace fp8gemm {
namespace {

namespace fs = std::filesystem;

constexpr int kNumThreads = 8;

std::string Refuse() { throw std::runtime_error("the build must not run"); }

/// Returns once every other thread waits for the build that calls this.
void AwaitWaiters(const KernelCache& cache, uint64_t hits_before) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (cache.GetCounters().memory_hits - hits_before < kNumThreads - 1) {
    CHECK(std::chrono::steady_clock::now() < deadline);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

template <typename Body>
void OnThreads(Body body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kNumThreads; ++i) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}

void TestThreads() {
  KernelCache cache;
  std::vector<KernelCache::Image> images(kNumThreads);
  OnThreads([&](int i) {
    images[i] = cache.GetOrBuild("key", "label", [&] {
      AwaitWaiters(cache, 0);
      return std::string("image");
    });
  });
  CHECK(cache.GetCounters().builds == 1 && cache.GetCounters().memory_hits == kNumThreads - 1);
  for (const auto& image : images) CHECK(image == images[0] && *image == "image");

  // Every waiter gets the exception of the one build, and the next call builds again.
  std::vector<std::string> messages(kNumThreads);
  OnThreads([&](int i) {
    messages[i] =
        CHECK_THROWS(std::invalid_argument, cache.GetOrBuild("bad", "label", [&]() -> std::string {
          AwaitWaiters(cache, kNumThreads - 1);
          throw std::invalid_argument("no such tile");
        }));
  });
  for (const std::string& message : messages) CHECK(message == "no such tile");
  CHECK(cache.GetCounters().builds == 2);
  CHECK(*cache.GetOrBuild("bad", "label", [] { return std::string("good"); }) == "good");
  CHECK(cache.GetCounters().builds == 3);

  CHECK_CONTAINS(CHECK_THROWS(std::runtime_error,
                              cache.GetOrBuild("none", "tile", [] { return std::string(); })),
                 "kernel 'tile' gave no image");
  CHECK_THROWS(std::bad_function_call, cache.GetOrBuild("none", "tile", nullptr));

  // Builds of different keys run at the same time: each waits for all the others.
  std::atomic<int> running = 0;
  OnThreads([&](int i) {
    cache.GetOrBuild("parallel" + std::to_string(i), "label", [&] {
      for (++running; running < kNumThreads;) std::this_thread::yield();
      return std::string("image");
    });
  });
  cache.ClearMemory();
  CHECK(*cache.GetOrBuild("key", "label", [] { return std::string("again"); }) == "again");
  CHECK(*images[0] == "image");
  CHECK(cache.Disk() == nullptr);
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void WriteFile(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

/// Runs a fresh cache, as another process would, over the entry of "key".
KernelCache::Counters Reopen(const std::string& directory, bool may_build) {
  KernelCache cache;
  cache.SetDirectory(directory);
  const auto image =
      cache.GetOrBuild("key", "tile", [&] { return may_build ? std::string("image") : Refuse(); });
  CHECK(*image == "image");
  return cache.GetCounters();
}

struct Fault {
  std::string name;
  std::string fault;
};

/// Entries that would not be loaded, and why.
std::vector<Fault> FaultsOf(const DiskStore& store) {
  std::vector<Fault> faults;
  for (const DiskEntry& entry : store.List()) {
    const std::string fault = store.FaultOf(entry.name);
    if (!fault.empty()) faults.push_back({entry.name, fault});
  }
  return faults;
}

void Age(const std::string& path, int seconds) {
  fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::seconds(seconds));
}

void TestDamage(const std::string& directory, const std::string& path) {
  const std::string good = ReadFile(path);
  for (size_t size = 0; size < good.size(); ++size) {
    WriteFile(path, good.substr(0, size));
    const auto counters = Reopen(directory, true);
    CHECK(counters.corrupt == 1 && counters.builds == 1 && counters.disk_hits == 0);
    CHECK(ReadFile(path) == good);
  }
  const DiskStore store(directory);
  for (size_t i = 0; i < 8 * good.size(); ++i) {
    std::string bad = good;
    bad[i / 8] = static_cast<char>(bad[i / 8] ^ (1 << i % 8));
    WriteFile(path, bad);
    CHECK(FaultsOf(store).size() == 1 && path.ends_with('/' + FaultsOf(store)[0].name));
    CHECK(store.Load("key", "tile").status == DiskStore::Status::kCorrupt);
    CHECK(!fs::exists(path));
  }
  CHECK(Reopen(directory, true).builds == 1);
  CHECK(ReadFile(path) == good && FaultsOf(store).empty());
  WriteFile(path, good + "x");
  CHECK(Reopen(directory, true).corrupt == 1);
  CHECK(Reopen(directory, false).disk_hits == 1);
}

void TestDisk(const std::string& root) {
  const std::string directory = root + "/deep/cache";
  const DiskStore store(directory + "/");
  CHECK(store.directory() == directory);
  CHECK(store.List().empty() && store.Clear() == 0 && !fs::exists(directory));
  CHECK(Reopen(directory, true).builds == 1);
  struct stat info = {};
  CHECK(stat(directory.c_str(), &info) == 0 && (info.st_mode & 0777) == 0700);
  const std::string path = store.PathOf("key", "tile");
  CHECK(fs::path(path).filename().string().size() == std::string("tile-.bin").size() + 32);
  CHECK(Reopen(directory, false).disk_hits == 1);
  TestDamage(directory, path);

  // A file with another key under this key's name is what a hash collision looks like.
  CHECK(store.Store("other key", "tile", "other image").empty());
  fs::rename(store.PathOf("other key", "tile"), path);
  const auto collided = Reopen(directory, true);
  CHECK(collided.builds == 1 && collided.corrupt == 0 && collided.disk_hits == 0);
  CHECK(store.Store("other key", "tile", "other image").empty() && FaultsOf(store).empty());
  fs::rename(store.PathOf("other key", "tile"), path);
  CHECK(FaultsOf(store).size() == 1);
  CHECK_CONTAINS(FaultsOf(store)[0].fault, "another kernel's");

  // Labels cannot leave the directory, and long ones fit in a file name.
  CHECK(store.Store("k", "../up/\n", "x").empty());
  CHECK(fs::exists(store.PathOf("k", ".._up__")));
  CHECK(store.Store("k", std::string(1000, 'l'), "x").empty());
  CHECK(store.List().size() == 3);
  CHECK(store.List()[0].label == ".._up__" && store.List()[2].label == "tile");
  CHECK(store.List()[2].file_bytes == fs::file_size(path));

  // A directory in the way of an entry cannot be replaced: a warning, no more.
  CHECK(fs::create_directory(store.PathOf("blocked", "tile")));
  CHECK(store.Load("blocked", "tile").status == DiskStore::Status::kCorrupt);
  CHECK_CONTAINS(store.Store("blocked", "tile", "x"), "cannot write");

  const std::string temp = path + ".tmp-1-0", live = path + ".tmp-1-1";
  WriteFile(temp, "left by a dead process");
  Age(temp, 3700);
  WriteFile(live, "being written");
  WriteFile(directory + "/notes.txt", "not ours");
  CHECK(store.Clear() == 3 && store.List().empty());
  CHECK(fs::exists(directory + "/notes.txt"));
  CHECK(!fs::exists(temp) && fs::exists(live));
}

/// Entries of another version of the format, and of a kernel that is the same but for its
/// architecture or its compiler, under our kernel's name: none is loaded, and ours takes its place.
void TestForeign(const std::string& directory) {
  const DiskStore store(directory);
  CHECK(Reopen(directory, true).builds == 1);
  const std::string path = store.PathOf("key", "tile"), good = ReadFile(path);
  for (const int version : {0, 1, 2, 3, 255}) {  // behind the eight letters of its name
    std::string other = good;
    other[8] = static_cast<char>(version);
    if (other == good) continue;
    const std::string content = other.substr(0, other.size() - sizeof(uint64_t));
    const uint64_t checksum = Fnv1a64(content);
    other = content + std::string(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
    WriteFile(path, other);
    CHECK_CONTAINS(FaultsOf(store).at(0).fault, "another version");
    const auto counters = Reopen(directory, true);
    CHECK(counters.corrupt == 1 && counters.builds == 1 && counters.disk_hits == 0);
    CHECK(ReadFile(path) == good);
  }
  CHECK(store.Clear() == 1);
  const std::string ours = "header a.cuh 01\nnvrtc 13.0\noption --gpu-architecture=sm_90a\ntile";
  for (const auto& [from, to] : {std::pair{"sm_90a", "sm_100a"}, std::pair{"13.0", "13.1"}}) {
    std::string others = ours;
    others.replace(others.find(from), std::strlen(from), to);
    CHECK(store.Store(others, "tile", "their image").empty());
    CHECK(store.Load(ours, "tile").status == DiskStore::Status::kMiss);
    fs::rename(store.PathOf(others, "tile"), store.PathOf(ours, "tile"));
    CHECK_CONTAINS(FaultsOf(store).at(0).fault, "another kernel's");
    CHECK(store.Load(ours, "tile").status == DiskStore::Status::kMiss);
    CHECK(store.Store(ours, "tile", "our image").empty());
    CHECK(store.Load(ours, "tile").image == "our image");
    CHECK(FaultsOf(store).empty() && store.Clear() == 1);
  }
}

/// Builds two kernels over a disk that refuses; expects both images and one warning.
void TestRefusingDisk(const std::string& directory, const char* reason) {
  KernelCache cache;
  std::vector<std::string> warnings;
  cache.SetWarningSink([&](std::string warning) { warnings.push_back(std::move(warning)); });
  cache.SetDirectory(directory);
  const std::string image(1 << 20, 'i');
  CHECK(*cache.GetOrBuild("first", "tile", [&] { return image; }) == image);
  CHECK(*cache.GetOrBuild("second", "tile", [&] { return image; }) == image);
  CHECK(*cache.GetOrBuild("first", "tile", Refuse) == image);
  CHECK(cache.GetCounters().write_failures == 2 && cache.GetCounters().builds == 2);
  CHECK(warnings.size() == 1);
  CHECK_CONTAINS(warnings[0], reason);
  CHECK_CONTAINS(warnings[0], "JAX_FP8GEMM_CACHE_DIR");
  cache.SetWarningSink(nullptr);
  cache.SetDirectory(directory);
  CHECK(*cache.GetOrBuild("third", "tile", [&] { return image; }) == image);
}

void TestUnwritable(const std::string& root) {
  WriteFile(root + "/file", "");
  TestRefusingDisk(root + "/file/cache", "Not a directory");
  TestRefusingDisk(root + "/file", "Not a directory");
}

void TestFull(const std::string& directory) {
  // A limit on file sizes makes write() fail half-way, as a full disk does.
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit = {1 << 19, 1 << 19};
  CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  TestRefusingDisk(directory, "File too large");
  for (const auto& file : fs::directory_iterator(directory)) {
    CHECK(file.path().filename() == ".lock" && file.file_size() == 0);
  }
}

void TestRoom(const std::string& directory) {
  const std::string image(1000, 'i');
  const DiskStore store(directory, 3500);  // three entries of 1,000 and some bytes
  const std::vector<std::string> keys = {"a", "b", "c", "d"};
  for (int i = 0; i < 3; ++i) {
    CHECK(store.Store(keys[i], "tile", image).empty());
    Age(store.PathOf(keys[i], "tile"), 300 - 100 * i);
  }
  const std::string old = store.PathOf("b", "tile") + ".tmp-7-7", live = old + "7";
  const std::string notes = directory + "/notes.txt", notes_temp = notes + ".tmp-7-7";
  for (const auto& path : {old, live, notes, notes_temp}) WriteFile(path, std::string(9000, 'x'));
  for (const auto& path : {old, notes, notes_temp}) Age(path, 3700);
  Age(live, 3500);
  // A load makes the oldest the newest, so the second oldest goes.
  CHECK(store.Load("a", "tile").status == DiskStore::Status::kHit);
  CHECK(store.Store("d", "tile", image).empty());
  for (const auto& key : keys) CHECK(fs::exists(store.PathOf(key, "tile")) == (key != "b"));
  CHECK(!fs::exists(old) && fs::exists(live) && fs::exists(notes) && fs::exists(notes_temp));
  // What is larger than the limit is kept until the next one comes.
  CHECK(store.Store("e", "tile", std::string(5000, 'i')).empty() && store.List().size() == 1);
  CHECK(store.Load("e", "tile").status == DiskStore::Status::kHit);
  CHECK(store.Store("a", "tile", image).empty() && store.List().size() == 1);
  CHECK(store.Load("a", "tile").status == DiskStore::Status::kHit);
}

void Work(const std::string& directory, int num_keys, uint64_t limit_bytes) {
  KernelCache cache;
  cache.SetWarningSink([](std::string warning) { checks::Fail("warning", 0, warning); });
  cache.SetDirectory(directory, limit_bytes);
  for (int i = 0; i < num_keys; ++i) {
    const std::string key = "key " + std::to_string(i);
    const std::string image(20000 + i, static_cast<char>('a' + i % 26));
    CHECK(*cache.GetOrBuild(key, "tile", [&] { return image; }) == image);
  }
  const auto counters = cache.GetCounters();
  CHECK(counters.corrupt == 0 && counters.write_failures == 0);
  std::printf("%d %d\n", static_cast<int>(counters.builds), static_cast<int>(counters.disk_hits));
}

}  // namespace
}  // namespace fp8gemm

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  const std::string directory = argc > 2 ? argv[2] : "";
  if (mode == "threads") {
    fp8gemm::TestThreads();
  } else if (mode == "disk") {
    fp8gemm::TestDisk(directory);
  } else if (mode == "foreign") {
    fp8gemm::TestForeign(directory);
  } else if (mode == "unwritable") {
    fp8gemm::TestUnwritable(directory);
  } else if (mode == "refusing" && argc > 3) {
    fp8gemm::TestRefusingDisk(directory, argv[3]);
  } else if (mode == "full") {
    fp8gemm::TestFull(directory);
  } else if (mode == "worker") {
    fp8gemm::Work(directory, std::stoi(argv[3]),
                  argc > 4 ? std::stoull(argv[4]) : fp8gemm::DiskStore::kNoLimit);
  } else if (mode == "room") {
    fp8gemm::TestRoom(directory);
  } else {
    checks::Fail("usage", 0, "unknown mode '" + mode + "'");
  }
}
