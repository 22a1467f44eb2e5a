// SPDX-License-Identifier: Apache-2.0
// Ctrl-C: whom it stops, and that the handler of the process is still called.
#include "driver/interrupts.h"

#include <atomic>
#include <csignal>
#include <thread>
#include <vector>

#include "checks.h"

namespace fp8gemm {
namespace {

std::atomic<int> num_first = 0, num_second = 0, num_asked = 0;
bool stops = true;

void First(int) { ++num_first; }
void Second(int, siginfo_t* info, void*) { num_second += info->si_signo == SIGINT; }

void (*CurrentHandler())(int) {
  struct sigaction now = {};
  CHECK(sigaction(SIGINT, nullptr, &now) == 0);
  return now.sa_handler;
}

void TestProcessesWithoutAHandler() {
  for (auto* handler : {SIG_DFL, SIG_IGN}) {
    std::signal(SIGINT, handler);
    const uint64_t mark = WatchInterrupts();
    CHECK(CurrentHandler() == handler && !WasInterrupted(mark));
  }
}

void TestWhomAnInterruptStops() {
  std::signal(SIGINT, First);
  const uint64_t early = WatchInterrupts();
  const uint64_t again = WatchInterrupts();
  CHECK(!WasInterrupted(early) && num_asked == 0);
  std::raise(SIGINT);
  CHECK(num_first == 1);
  const uint64_t late = WatchInterrupts();  // began after it
  CHECK(WasInterrupted(early) && WasInterrupted(again) && !WasInterrupted(late));
  CHECK(num_asked == 1);

  stops = false;
  std::raise(SIGINT);
  CHECK(num_first == 2 && !WasInterrupted(late) && num_asked == 2);
  CHECK(!WasInterrupted(late) && num_asked == 2);  // asked once per signal
  stops = true;
  InterruptAll();
  CHECK(WasInterrupted(late));
}

// As when a program calls signal.signal: the new handler is alone until the next operation.
void TestAnotherHandler() {
  struct sigaction second = {};
  second.sa_sigaction = Second;
  second.sa_flags = SA_SIGINFO | SA_RESTART;
  CHECK(sigaction(SIGINT, &second, nullptr) == 0);
  const uint64_t mark = WatchInterrupts();
  struct sigaction now = {};
  CHECK(sigaction(SIGINT, nullptr, &now) == 0 && (now.sa_flags & SA_RESTART) != 0);
  std::raise(SIGINT);
  CHECK(num_first == 2 && num_second == 1 && WasInterrupted(mark));
}

// Or a program would learn that its work has ended before it learns of the signal.
void TestHandlersRunBeforeWorkStops() {
  static uint64_t mark = 0;
  static bool was_early = true;
  std::signal(SIGINT, [](int) { was_early = WasInterrupted(mark); });
  mark = WatchInterrupts();
  std::raise(SIGINT);
  CHECK(!was_early && WasInterrupted(mark));
}

void TestThreads() {
  std::vector<std::thread> threads;
  std::atomic<int> num_watching = 0, num_stopped = 0;
  constexpr int kNumThreads = 8;
  for (int i = 0; i < kNumThreads; ++i) {
    threads.emplace_back([&] {
      const uint64_t mark = WatchInterrupts();
      ++num_watching;
      while (!WasInterrupted(mark)) std::this_thread::yield();
      ++num_stopped;
    });
  }
  while (num_watching < kNumThreads) std::this_thread::yield();
  CHECK(num_stopped == 0);
  std::raise(SIGINT);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace fp8gemm

int main() {
  using namespace fp8gemm;
  TestProcessesWithoutAHandler();
  SetInterruptRule([] {
    ++num_asked;
    return stops;
  });
  TestWhomAnInterruptStops();
  TestAnotherHandler();
  TestHandlersRunBeforeWorkStops();
  TestThreads();
}
