// SPDX-License-Identifier: Apache-2.0
// Compiled kernels by key: in memory with single flight, and optionally on disk.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <unordered_map>

#include "driver/fork_mutex.h"
#include "jit/disk_store.h"

namespace fp8gemm {

/// Thread-safe. Of the threads of this process at most one builds a key at a time; nor do two
/// processes that keep their kernels in the same directory, if its file system has locks.
class KernelCache {
 public:
  using Image = std::shared_ptr<const std::string>;

  /// @param patience  How long to wait for a kernel that another process builds, before this one
  ///                  builds it too: by default much longer than a compilation takes.
  explicit KernelCache(std::chrono::milliseconds patience = std::chrono::minutes(1))
      : patience_(patience) {}

  struct Counters {
    uint64_t memory_hits = 0;  // includes threads that waited for another thread's build
    uint64_t disk_hits = 0;    // includes what another process built while this one waited
    uint64_t builds = 0;       // started, whether they succeeded or not
    uint64_t corrupt = 0;      // entries on disk that were damaged or not ours, and rebuilt
    uint64_t write_failures = 0;
  };

  /// The image of a key: from memory, from disk, or from `build`.
  ///
  /// Threads that ask for a key which is being built wait, and share the image or the exception. An
  /// exception is not kept: the next call builds again. `build` runs on the calling thread, without
  /// a lock, and must not ask for the same key.
  ///
  /// @param key_text  Everything the image depends on, or a digest of it; compared in full.
  /// @param label     Start of the file name, for people who look into the directory.
  /// @return          Never null, never empty.
  /// @throws          What `build` throws; std::runtime_error if it returns an empty image, or must
  ///                  not run because this process was forked during another build.
  Image GetOrBuild(const std::string& key_text, const std::string& label,
                   const std::function<std::string()>& build);

  /// Directory of the entries on disk, and what they may have together; "" keeps images in memory
  /// only (the initial state). Images already in memory stay.
  void SetDirectory(const std::string& path, uint64_t limit_bytes = DiskStore::kNoLimit);

  /// The entries on disk, of this and of other processes; null where images stay in memory.
  std::shared_ptr<const DiskStore> Disk() const;

  /// Receives the reason when an entry cannot be written, once per directory. Called without a lock
  /// on a thread that builds, after the image is ready; must not throw.
  void SetWarningSink(std::function<void(std::string)> sink);

  Counters GetCounters() const;

  /// Forgets all images in memory; holders of an image, and builds under way, are not disturbed.
  void ClearMemory();

 private:
  std::string Build(const std::string& label, const std::function<std::string()>& build);
  std::string LoadFrom(const DiskStore* disk, const std::string& key_text,
                       const std::string& label);
  void StoreOrWarn(const DiskStore& disk, const std::string& key_text, const std::string& label,
                   const std::string& image);
  void ForgetOtherThreads();

  const std::chrono::milliseconds patience_;
  std::unordered_map<std::string, std::shared_future<Image>> images_;
  std::shared_ptr<const DiskStore> disk_;  // null: memory only
  std::function<void(std::string)> warning_sink_;
  int num_building_ = 0;
  bool can_build_ = true;
  bool warned_ = false;  // about disk_
  Counters counters_;
  // Guards everything above but patience_; never held while building or doing I/O. The last, as a
  // fork may come as soon as it is there, and until it is gone.
  mutable ForkMutex mutex_{[this] { ForgetOtherThreads(); }};
};

/// The cache of this process. Never destroyed: threads of XLA may outlive static destruction.
KernelCache& ProcessKernelCache();

}  // namespace fp8gemm
