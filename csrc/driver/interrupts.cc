// SPDX-License-Identifier: Apache-2.0
// A handler of SIGINT that counts and then calls the one that was there.
#include "driver/interrupts.h"

#include <pthread.h>

#include <atomic>
#include <csignal>
#include <mutex>
#include <new>
#include <utility>

namespace fp8gemm {
namespace {

using Handler = struct sigaction;

// Never changed or freed, as a signal may come at any time.
struct KnownHandler {
  Handler handler;
  const KnownHandler* older;
};
std::atomic<const KnownHandler*> known_handlers = nullptr;
std::atomic<const Handler*> previous = nullptr;  // one of them
std::atomic<int> num_in_handler = 0;
std::atomic<uint64_t> num_signals = 0;    // and calls of InterruptAll
std::atomic<uint64_t> num_judged = 0;     // of these
std::atomic<uint64_t> last_stopping = 0;  // the number of the last one that stops what runs

struct Rule {
  std::mutex mutex;
  std::function<bool()> stops;
};

Rule& TheRule() {
  static auto* rule = [] {
    auto* made = new Rule;  // leaked: threads of XLA may outlive static destruction
    // Its holder may wait for the GIL, which a thread that forks has.
    pthread_atfork(nullptr, nullptr, [] { new (&TheRule().mutex) std::mutex; });
    return made;
  }();
  return *rule;
}

// Where a handler calls the one before it, and that is this one, the first that there was is next.
const Handler& NextHandler() {
  const KnownHandler* known = known_handlers;
  if (num_in_handler == 1) return *previous.load();
  while (known->older != nullptr) known = known->older;
  return known->handler;
}

// Counts last: what stops makes XLA return, and Python must know of the signal by then, or it would
// raise KeyboardInterrupt too late, say while it prints the error of the work.
void CountSignal(int signal, siginfo_t* info, void* context) {
  num_in_handler.fetch_add(1);
  const Handler& next = NextHandler();
  if ((next.sa_flags & SA_SIGINFO) != 0) {
    next.sa_sigaction(signal, info, context);
  } else {
    next.sa_handler(signal);
  }
  num_in_handler.fetch_sub(1);
  num_signals.fetch_add(1);
}

void Remember(const Handler& handler) {
  const KnownHandler* known = known_handlers;
  while (known != nullptr && (known->handler.sa_flags != handler.sa_flags ||
                              known->handler.sa_sigaction != handler.sa_sigaction)) {
    known = known->older;
  }
  if (known == nullptr) known_handlers = known = new KnownHandler{handler, known_handlers};
  previous = &known->handler;
}

// Python puts its own handler back whenever a program calls `signal.signal`, so this looks again.
// Without a handler the process dies of the signal or ignores it: nothing to do.
void WatchSignal() {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  Handler now = {};
  if (sigaction(SIGINT, nullptr, &now) != 0) return;
  if ((now.sa_flags & SA_SIGINFO) != 0) {
    if (now.sa_sigaction == CountSignal) return;
  } else if (now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN) {
    return;
  }
  Remember(now);
  Handler ours = now, replaced = {};
  ours.sa_sigaction = CountSignal;
  ours.sa_flags |= SA_SIGINFO;
  if (sigaction(SIGINT, &ours, &replaced) != 0) return;
  // Another thread has set one meanwhile, which is not to be lost.
  if (replaced.sa_sigaction != now.sa_sigaction) sigaction(SIGINT, &replaced, nullptr);
}

void RaiseLastStopping(uint64_t number) {
  uint64_t last = last_stopping;
  while (last < number && !last_stopping.compare_exchange_weak(last, number)) {
  }
}

// One thread asks the rule; others learn of it when they ask again.
void JudgeSignals() {
  const std::unique_lock lock(TheRule().mutex, std::try_to_lock);
  if (!lock.owns_lock()) return;
  const uint64_t seen = num_signals;
  if (seen == num_judged) return;
  if (TheRule().stops && TheRule().stops()) RaiseLastStopping(seen);
  num_judged = seen;
}

}  // namespace

void SetInterruptRule(std::function<bool()> rule) {
  const std::lock_guard lock(TheRule().mutex);
  TheRule().stops = std::move(rule);
}

uint64_t WatchInterrupts() {
  WatchSignal();
  return num_signals;
}

bool WasInterrupted(uint64_t mark) {
  if (num_signals != num_judged) JudgeSignals();
  return last_stopping > mark;
}

void InterruptAll() { RaiseLastStopping(++num_signals); }

}  // namespace fp8gemm
