// SPDX-License-Identifier: Apache-2.0
// Counts the threads that are without the GIL and will want it again.
#include "bindings/interpreter.h"

#include <pthread.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

#include "driver/interrupts.h"

namespace fp8gemm {
namespace {

// More than it takes what runs to stop.
constexpr std::chrono::seconds kEndPatience(2);

struct Interpreter {
  std::mutex mutex;
  std::condition_variable fewer_away;
  int num_away = 0;
  std::thread::id ended_by;  // goes on using Python, in what else runs at exit
};

Interpreter& TheInterpreter() {
  static auto* interpreter = [] {
    auto* made = new Interpreter;  // leaked: threads may outlive static destruction
    // A child has none of the threads that were away.
    pthread_atfork(nullptr, nullptr, [] { new (&TheInterpreter()) Interpreter; });
    return made;
  }();
  return *interpreter;
}

bool IsEndingForThisThread() {
  const std::thread::id ended_by = TheInterpreter().ended_by;
  return ended_by != std::thread::id() && ended_by != std::this_thread::get_id();
}

/// Counts the thread as away; false, and not, if the interpreter is ending.
bool GoAway() {
  const std::lock_guard lock(TheInterpreter().mutex);
  if (IsEndingForThisThread()) return false;
  ++TheInterpreter().num_away;
  return true;
}

void ComeBack() {
  const std::lock_guard lock(TheInterpreter().mutex);
  --TheInterpreter().num_away;
  TheInterpreter().fewer_away.notify_all();
}

}  // namespace

// Not counted: a thread that has got the GIL while EndInterpreter waits without it.
WithoutGil::WithoutGil() : is_counted_(GoAway()), state_(PyEval_SaveThread()) {}

WithoutGil::~WithoutGil() {
  bool is_ending = false;
  {
    const std::lock_guard lock(TheInterpreter().mutex);
    is_ending = IsEndingForThisThread();
  }
  if (is_ending) {
    if (is_counted_) ComeBack();
    while (true) pause();
  }
  PyEval_RestoreThread(state_);
  if (is_counted_) ComeBack();
}

WithGil::WithGil() : is_held_(GoAway()) {
  if (is_held_) state_ = PyGILState_Ensure();
}

WithGil::~WithGil() {
  if (!is_held_) return;
  PyGILState_Release(state_);
  ComeBack();
}

void EndInterpreter() {
  Interpreter& interpreter = TheInterpreter();
  {
    const std::lock_guard lock(interpreter.mutex);
    interpreter.ended_by = std::this_thread::get_id();
  }
  InterruptAll();
  PyThreadState* const state = PyEval_SaveThread();
  {
    std::unique_lock lock(interpreter.mutex);
    interpreter.fewer_away.wait_for(lock, kEndPatience, [&] { return interpreter.num_away == 0; });
  }
  PyEval_RestoreThread(state);
}

}  // namespace fp8gemm
