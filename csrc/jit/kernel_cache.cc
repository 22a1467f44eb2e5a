// SPDX-License-Identifier: Apache-2.0
// Single flight over a map of shared futures, in front of the disk store.
#include "jit/kernel_cache.h"

#include <mutex>
#include <stdexcept>
#include <utility>

namespace fp8gemm {
namespace {

KernelCache& process_cache = *new KernelCache;

/// Runs an action when a scope is left: by an exception, if it was not dismissed.
template <typename Action>
class OnExit {
 public:
  explicit OnExit(Action action) : action_(std::move(action)) {}
  ~OnExit() {
    if (armed_) action_();
  }
  OnExit(const OnExit&) = delete;
  OnExit& operator=(const OnExit&) = delete;
  void Dismiss() { armed_ = false; }

 private:
  Action action_;
  bool armed_ = true;
};

}  // namespace

KernelCache::Image KernelCache::GetOrBuild(const std::string& key_text, const std::string& label,
                                           const std::function<std::string()>& build) {
  std::shared_ptr<const DiskStore> disk;
  std::unique_ptr<BuildLock> lock;  // until the image is on disk
  bool is_built = false;
  // The task carries an exception of `build` to every waiter. A failed entry leaves the map before
  // the waiters wake, so no later call can find it.
  std::packaged_task<Image()> task([&] {
    OnExit forget([&] {
      const std::lock_guard lock(mutex_);
      images_.erase(key_text);
    });
    std::string image = LoadFrom(disk.get(), key_text, label);
    if (image.empty() && disk != nullptr) {
      lock = disk->LockBuild(key_text, patience_);
      image = LoadFrom(disk.get(), key_text, label);  // another process may have built it meanwhile
    }
    is_built = image.empty();
    if (is_built) image = Build(label, build);
    auto shared = std::make_shared<const std::string>(std::move(image));
    forget.Dismiss();
    return shared;
  });
  std::shared_future<Image> result = task.get_future().share();
  bool leads = false;
  {
    const std::lock_guard lock(mutex_);
    const auto [entry, inserted] = images_.try_emplace(key_text, result);
    leads = inserted;
    disk = disk_;
    if (!leads) {
      result = entry->second;
      ++counters_.memory_hits;
    }
  }
  if (!leads) return result.get();
  task();
  Image image = result.get();
  if (is_built && disk != nullptr) StoreOrWarn(*disk, key_text, label, *image);
  return image;
}

std::string KernelCache::Build(const std::string& label,
                               const std::function<std::string()>& build) {
  {
    const std::lock_guard lock(mutex_);
    if (!can_build_) {
      throw std::runtime_error(
          "kernel '" + label +
          "' cannot be compiled: this process was forked while its parent compiled another; start "
          "processes by \"spawn\" or \"forkserver\", or compile the kernel before the fork.");
    }
    ++num_building_;
    ++counters_.builds;
  }
  const OnExit done([&] {
    const std::lock_guard lock(mutex_);
    --num_building_;
  });
  std::string image = build();
  if (image.empty()) throw std::runtime_error("the build of kernel '" + label + "' gave no image");
  return image;
}

std::string KernelCache::LoadFrom(const DiskStore* disk, const std::string& key_text,
                                  const std::string& label) {
  if (disk == nullptr) return "";
  DiskStore::Loaded loaded = disk->Load(key_text, label);
  const std::lock_guard lock(mutex_);
  if (loaded.status == DiskStore::Status::kHit) ++counters_.disk_hits;
  if (loaded.status == DiskStore::Status::kCorrupt) ++counters_.corrupt;
  return std::move(loaded.image);
}

void KernelCache::StoreOrWarn(const DiskStore& disk, const std::string& key_text,
                              const std::string& label, const std::string& image) {
  const std::string failure = disk.Store(key_text, label, image);
  if (failure.empty()) return;
  std::function<void(std::string)> sink;
  {
    const std::lock_guard lock(mutex_);
    ++counters_.write_failures;
    if (!std::exchange(warned_, true)) sink = warning_sink_;
  }
  if (sink) {
    sink("Compiled kernels are not kept on disk, so every process compiles them again: " + failure +
         ".");
  }
}

void KernelCache::SetDirectory(const std::string& path, uint64_t limit_bytes) {
  auto disk = path.empty() ? nullptr : std::make_shared<const DiskStore>(path, limit_bytes);
  const std::lock_guard lock(mutex_);
  disk_ = std::move(disk);
  warned_ = false;
}

std::shared_ptr<const DiskStore> KernelCache::Disk() const {
  const std::lock_guard lock(mutex_);
  return disk_;
}

void KernelCache::SetWarningSink(std::function<void(std::string)> sink) {
  const std::lock_guard lock(mutex_);
  warning_sink_ = std::move(sink);
}

KernelCache::Counters KernelCache::GetCounters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

void KernelCache::ClearMemory() {
  const std::lock_guard lock(mutex_);
  images_.clear();
}

// In a forked child. NVRTC may have been amid a build, and then nothing can be built any more.
void KernelCache::ForgetOtherThreads() {
  can_build_ = can_build_ && num_building_ == 0;
  num_building_ = 0;
  std::erase_if(images_, [](const auto& entry) {
    return entry.second.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
  });
}

KernelCache& ProcessKernelCache() { return process_cache; }

}  // namespace fp8gemm
