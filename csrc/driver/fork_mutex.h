// SPDX-License-Identifier: Apache-2.0
// The mutex of this library, which a forked child finds free.
#pragma once
#include <atomic>
#include <functional>
#include <mutex>
#include <thread>

namespace fp8gemm {

/// A mutex that a forked child finds free, whatever other thread of its parent held it.
///
/// fork() waits for the threads that hold such mutexes, so that what these guard is whole in the
/// child. It waits for two seconds at most: a holder may want what the forking thread has, say
/// Python's GIL. So what a mutex guards that is held for long must be whole at any time. One that
/// the forking thread holds stays its own, in the child too: libcuda may fork in cuInit.
class ForkMutex {
 public:
  /// @param in_child  Called in a forked child, where nobody else runs yet: to forget what other
  ///     threads of the parent were doing.
  explicit ForkMutex(std::function<void()> in_child = nullptr);
  ~ForkMutex();
  ForkMutex(const ForkMutex&) = delete;
  ForkMutex& operator=(const ForkMutex&) = delete;

  void lock() {
    mutex_.lock();
    owner_ = std::this_thread::get_id();
  }
  bool try_lock() {
    const bool is_free = mutex_.try_lock();
    if (is_free) owner_ = std::this_thread::get_id();
    return is_free;
  }
  void unlock() {
    owner_ = std::thread::id();
    mutex_.unlock();
  }

  /// Handlers of pthread_atfork.
  static void BeforeFork();
  static void AfterForkInParent();
  static void AfterForkInChild();

 private:
  static bool TryLockAll();
  static void UnlockAll();

  bool IsOwn() const { return owner_ == std::this_thread::get_id(); }

  std::mutex mutex_;
  std::atomic<std::thread::id> owner_{};
  std::function<void()> in_child_;
  bool is_held_for_fork_ = false;
  ForkMutex* next_;  // of all that there are
};

}  // namespace fp8gemm
