// SPDX-License-Identifier: Apache-2.0
// Before fork() every such mutex is locked, after it unlocked in the parent and in the child.
#include "driver/fork_mutex.h"

#include <pthread.h>

#include <chrono>
#include <new>
#include <thread>
#include <utility>

namespace fp8gemm {
namespace {

// More than it takes to load a library or a kernel.
constexpr std::chrono::seconds kForkPatience(2);

// Initialized at compile time, as other files construct mutexes before main.
constinit std::mutex list_mutex;
constinit ForkMutex* first_mutex = nullptr;

const int kRegistered = pthread_atfork(&ForkMutex::BeforeFork, &ForkMutex::AfterForkInParent,
                                       &ForkMutex::AfterForkInChild);

}  // namespace

ForkMutex::ForkMutex(std::function<void()> in_child) : in_child_(std::move(in_child)) {
  const std::lock_guard lock(list_mutex);
  next_ = std::exchange(first_mutex, this);
}

ForkMutex::~ForkMutex() {
  const std::lock_guard lock(list_mutex);
  ForkMutex** link = &first_mutex;
  while (*link != this) link = &(*link)->next_;
  *link = next_;
}

bool ForkMutex::TryLockAll() {
  bool all = true;
  for (ForkMutex* each = first_mutex; each != nullptr; each = each->next_) {
    if (each->IsOwn()) continue;
    each->is_held_for_fork_ = each->mutex_.try_lock();
    all = all && each->is_held_for_fork_;
  }
  return all;
}

void ForkMutex::UnlockAll() {
  for (ForkMutex* each = first_mutex; each != nullptr; each = each->next_) {
    if (std::exchange(each->is_held_for_fork_, false)) each->mutex_.unlock();
  }
  list_mutex.unlock();
}

// Lets go of all while it waits for one: their holders may want others of them, in any order.
void ForkMutex::BeforeFork() {
  const auto deadline = std::chrono::steady_clock::now() + kForkPatience;
  list_mutex.lock();
  while (!TryLockAll() && std::chrono::steady_clock::now() < deadline) {
    UnlockAll();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    list_mutex.lock();
  }
}

void ForkMutex::AfterForkInParent() { UnlockAll(); }

void ForkMutex::AfterForkInChild() {
  for (ForkMutex* each = first_mutex; each != nullptr; each = each->next_) {
    if (!each->is_held_for_fork_ && !each->IsOwn()) {
      new (&each->mutex_) std::mutex;  // its holder is not here
    }
    if (each->in_child_) each->in_child_();
  }
  UnlockAll();
}

}  // namespace fp8gemm
