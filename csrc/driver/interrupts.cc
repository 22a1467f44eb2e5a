// SPDX-License-Identifier: Apache-2.0
// A handler of SIGINT that counts and then calls the one that was there.
#include "driver/interrupts.h"

#include <atomic>
#include <csignal>
#include <functional>
#include <mutex>
#include <utility>

#include "driver/fork_mutex.h"

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
// Interrupts, which are signals and calls of InterruptAll, by number.
std::atomic<uint64_t> last_interrupt = 0;
std::atomic<uint64_t> last_judged = 0;    // the last one that the rule was asked about
std::atomic<uint64_t> last_stopping = 0;  // the last one that stops what runs

// Never destroyed: threads of XLA may outlive static destruction.
ForkMutex& rule_mutex = *new ForkMutex;  // its holder may wait for the GIL
std::function<bool()>& interrupt_stops = *new std::function<bool()>;
ForkMutex& watch_mutex = *new ForkMutex;  // held by whoever sets a handler

// The handler that was there before CountSignal. That one may call CountSignal in its turn, if it
// was set later and calls what it replaced: then the process's first handler is next, or the two
// would call each other for ever.
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
  last_interrupt.fetch_add(1);
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
  const std::lock_guard lock(watch_mutex);
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

// last_stopping = max(last_stopping, number), in one step.
void StopUpTo(uint64_t number) {
  uint64_t last = last_stopping;
  while (last < number && !last_stopping.compare_exchange_weak(last, number)) {
  }
}

// One thread asks the rule; others learn of it when they ask again.
void JudgeInterrupts() {
  const std::unique_lock lock(rule_mutex, std::try_to_lock);
  if (!lock.owns_lock()) return;
  const uint64_t seen = last_interrupt;
  if (seen == last_judged) return;
  if (interrupt_stops && interrupt_stops()) StopUpTo(seen);
  last_judged = seen;
}

}  // namespace

void SetInterruptRule(std::function<bool()> rule) {
  const std::lock_guard lock(rule_mutex);
  interrupt_stops = std::move(rule);
}

uint64_t WatchInterrupts() {
  WatchSignal();
  return last_interrupt;
}

bool WasInterrupted(uint64_t mark) {
  if (last_interrupt != last_judged) JudgeInterrupts();
  return last_stopping > mark;
}

void InterruptAll() { StopUpTo(++last_interrupt); }

}  // namespace fp8gemm
