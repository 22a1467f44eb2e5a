// SPDX-License-Identifier: Apache-2.0
// A handler of SIGINT that counts and then calls the one that was there.
#include "driver/interrupts.h"

#include <atomic>
#include <csignal>
#include <mutex>
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
std::atomic<uint64_t> num_signals = 0;
std::atomic<uint64_t> num_judged = 0;      // of these
std::atomic<uint64_t> num_interrupts = 0;  // of these, what the rule let pass, and InterruptAll

struct Rule {
  std::mutex mutex;
  std::function<bool()> stops;
};

Rule& TheRule() {
  static auto* rule = new Rule;  // leaked: threads of XLA may outlive static destruction
  return *rule;
}

void CountSignal(int signal, siginfo_t* info, void* context) {
  num_signals.fetch_add(1);
  const Handler* const next = previous.load();
  if ((next->sa_flags & SA_SIGINFO) != 0) {
    next->sa_sigaction(signal, info, context);
  } else {
    next->sa_handler(signal);
  }
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
  now.sa_sigaction = CountSignal;
  now.sa_flags |= SA_SIGINFO;
  sigaction(SIGINT, &now, nullptr);
}

// One thread asks the rule; others learn of it when they ask again.
void JudgeSignals() {
  const std::unique_lock lock(TheRule().mutex, std::try_to_lock);
  if (!lock.owns_lock()) return;
  const uint64_t seen = num_signals;
  if (seen == num_judged) return;
  if (TheRule().stops && TheRule().stops()) num_interrupts.fetch_add(1);
  num_judged = seen;
}

}  // namespace

void SetInterruptRule(std::function<bool()> rule) {
  const std::lock_guard lock(TheRule().mutex);
  TheRule().stops = std::move(rule);
}

uint64_t WatchInterrupts() {
  WatchSignal();
  if (num_signals != num_judged) JudgeSignals();  // one that came before is not for this
  return num_interrupts;
}

bool WasInterrupted(uint64_t mark) {
  if (num_signals != num_judged) JudgeSignals();
  return num_interrupts != mark;
}

void InterruptAll() { num_interrupts.fetch_add(1); }

}  // namespace fp8gemm
