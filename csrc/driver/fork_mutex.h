// SPDX-License-Identifier: Apache-2.0
// What every lock of this library is: a mutex that a forked child finds free.
#pragma once
#include <functional>
#include <mutex>

namespace fp8gemm {

/// A mutex of which a child of fork() can have the lock, whatever threads of its parent held it.
///
/// fork() waits for the threads that hold one, so that what it guards is whole in the child. It
/// waits for seconds at most: a holder may want what the forking thread has, say Python's GIL. So
/// what is guarded by a lock that is held for long must be whole at any time.
class ForkMutex {
 public:
  /// @param in_child  Called in a forked child, where nobody else runs yet: to forget what other
  ///     threads of the parent were doing.
  explicit ForkMutex(std::function<void()> in_child = nullptr);
  ~ForkMutex();
  ForkMutex(const ForkMutex&) = delete;
  ForkMutex& operator=(const ForkMutex&) = delete;

  void lock() { mutex_.lock(); }
  bool try_lock() { return mutex_.try_lock(); }
  void unlock() { mutex_.unlock(); }

  /// Handlers of pthread_atfork.
  static void BeforeFork();
  static void AfterForkInParent();
  static void AfterForkInChild();

 private:
  static bool TryLockAll();
  static void UnlockAll();

  std::mutex mutex_;
  std::function<void()> in_child_;
  bool is_held_for_fork_ = false;
  ForkMutex* next_;  // of all that there are
};

}  // namespace fp8gemm
