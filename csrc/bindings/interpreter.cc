// SPDX-License-Identifier: Apache-2.0
// Counts the threads that have no GIL and will want it.
#include "bindings/interpreter.h"

#include <unistd.h>

#include <chrono>
#include <mutex>
#include <thread>

#include "driver/fork_mutex.h"
#include "driver/interrupts.h"

namespace fp8gemm {
namespace {

// More than it takes what runs to stop.
constexpr std::chrono::seconds kEndPatience(2);

// Threads that have no GIL and will want it.
int num_waiters = 0;
// The thread that called EndInterpreter. It goes on using Python, in what else runs at exit.
std::thread::id ended_by;
// Guards both. Never destroyed: threads may outlive static destruction.
ForkMutex& interpreter_mutex = *new ForkMutex([] {
  num_waiters = 0;
  ended_by = {};
});

bool IsEndingForThisThread() {
  return ended_by != std::thread::id() && ended_by != std::this_thread::get_id();
}

/// Counts this thread among the waiters, unless the interpreter is ending. Returns whether it did.
bool AddWaiter() {
  const std::lock_guard lock(interpreter_mutex);
  if (IsEndingForThisThread()) return false;
  ++num_waiters;
  return true;
}

void RemoveWaiter() {
  const std::lock_guard lock(interpreter_mutex);
  --num_waiters;
}

bool HasWaiters() {
  const std::lock_guard lock(interpreter_mutex);
  return num_waiters > 0;
}

}  // namespace

// A thread that has got the GIL while EndInterpreter waits without it is not counted.
WithoutGil::WithoutGil() : is_counted_(AddWaiter()), state_(PyEval_SaveThread()) {}

WithoutGil::~WithoutGil() {
  bool is_ending = false;
  {
    const std::lock_guard lock(interpreter_mutex);
    is_ending = IsEndingForThisThread();
  }
  if (is_ending) {
    if (is_counted_) RemoveWaiter();
    while (true) pause();
  }
  PyEval_RestoreThread(state_);
  if (is_counted_) RemoveWaiter();
}

WithGil::WithGil() : is_held_(AddWaiter()) {
  if (is_held_) state_ = PyGILState_Ensure();
}

WithGil::~WithGil() {
  if (!is_held_) return;
  PyGILState_Release(state_);
  RemoveWaiter();
}

void EndInterpreter() {
  {
    const std::lock_guard lock(interpreter_mutex);
    ended_by = std::this_thread::get_id();
  }
  InterruptAll();
  PyThreadState* const state = PyEval_SaveThread();
  const auto deadline = std::chrono::steady_clock::now() + kEndPatience;
  while (HasWaiters() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  PyEval_RestoreThread(state);
}

}  // namespace fp8gemm
