// SPDX-License-Identifier: Apache-2.0
// The scheduler's loop, its choices, and the queue of asynchronous operations.
#include "sim/engine/scheduler.h"

#include <algorithm>
#include <cstdint>

#include "sim/engine/deadlock.h"
#include "sim/engine/report.h"

namespace fp8gemm::sim {
namespace {

constexpr uint64_t kNever = UINT64_MAX;
constexpr uint64_t kMaxDelayTicks = 600;
constexpr uint64_t kInterruptTicks = 1024;  // some milliseconds

// Which class of operations a LATE launch starves: they run when nothing else at all can.
enum class Starved : uint32_t { kNone, kLoads, kWgmma, kStores, kFirstWarpgroup };

struct Scheduler {
  std::vector<Thread*> ready;
  std::vector<AsyncOp> pending;
  uint64_t tick = 0;
  uint64_t next_due = kNever;  // of the pending operations
  uint32_t starved = 0;        // Starved, or kFirstWarpgroup + index
  uint32_t starved_warp = 0;
  size_t live_threads = 0;
  Fiber fiber;
};

Scheduler scheduler;
uint64_t random_state = 1;

bool IsStarved(const AsyncOp& op) {
  switch (static_cast<Starved>(scheduler.starved)) {
    case Starved::kNone: return false;
    case Starved::kLoads:
      return op.kind == AsyncOp::Kind::kLoad || op.kind == AsyncOp::Kind::kAsyncStore;
    case Starved::kWgmma: return op.kind == AsyncOp::Kind::kWgmma;
    case Starved::kStores: return op.kind == AsyncOp::Kind::kStore;
    default:
      return op.kind == AsyncOp::Kind::kWgmma &&
             op.warpgroup->index ==
                 scheduler.starved - static_cast<uint32_t>(Starved::kFirstWarpgroup);
  }
}

void Perform(const AsyncOp& op) {
  Thread* const issuer = current;
  current = nullptr;
  switch (op.kind) {
    case AsyncOp::Kind::kLoad: FinishTmaLoad(*op.copy); break;
    case AsyncOp::Kind::kStore: FinishTmaStore(*op.copy); break;
    case AsyncOp::Kind::kAsyncStore: FinishAsyncStore(op.store); break;
    case AsyncOp::Kind::kWgmma: FinishWgmma(*op.warpgroup, op.group); break;
  }
  current = issuer;
}

AsyncOp TakePending(size_t index) {
  AsyncOp op = std::move(scheduler.pending[index]);
  if (index + 1 != scheduler.pending.size()) {
    scheduler.pending[index] = std::move(scheduler.pending.back());
  }
  scheduler.pending.pop_back();
  return op;
}

void PerformDue() {
  for (size_t i = 0; i < scheduler.pending.size();) {
    if (scheduler.pending[i].due <= scheduler.tick) {
      Perform(TakePending(i));
    } else {
      ++i;
    }
  }
  scheduler.next_due = kNever;
  for (const AsyncOp& op : scheduler.pending) {
    scheduler.next_due = std::min(scheduler.next_due, op.due);
  }
}

// Any pending operation, but one of the starved class only if there is no other.
void PerformOne() {
  const size_t count = scheduler.pending.size();
  const size_t start = Random() % count;
  size_t chosen = start;
  for (size_t i = 0; i < count; ++i) {
    const size_t candidate = (start + i) % count;
    if (!IsStarved(scheduler.pending[candidate])) {
      chosen = candidate;
      break;
    }
  }
  Perform(TakePending(chosen));
}

Thread* TakeReady() {
  std::vector<Thread*>& ready = scheduler.ready;
  size_t index = ready.size() - 1;
  if (world.options.scheduler != kSchedulerLifo) index = Random() % ready.size();
  if (world.options.scheduler == kSchedulerStarveWarp) {
    for (size_t i = 0; i < ready.size(); ++i) {
      if (ready[index]->warp->index != scheduler.starved_warp) break;
      index = (index + 1) % ready.size();
    }
  }
  Thread* const thread = ready[index];
  ready[index] = ready.back();
  ready.pop_back();
  return thread;
}

void Resume(Thread* thread) {
  ++world.stats.switches;
  current = thread;
  SwitchFiber(scheduler.fiber, thread->fiber);
  current = nullptr;
}

void Start() {
  const uint32_t warps_per_cta = static_cast<uint32_t>(world.ctas[0].warps.size());
  const uint32_t num_classes =
      static_cast<uint32_t>(Starved::kFirstWarpgroup) + warps_per_cta / kWarpgroupWarps;
  scheduler.ready.clear();
  scheduler.pending.clear();
  scheduler.tick = 0;
  scheduler.next_due = kNever;
  scheduler.starved = world.options.timing == kTimingLate
                          ? static_cast<uint32_t>(world.options.seed % num_classes)
                          : static_cast<uint32_t>(Starved::kNone);
  scheduler.starved_warp = static_cast<uint32_t>(Random() % warps_per_cta);
  scheduler.live_threads = world.threads.size();
  for (Thread& thread : world.threads) scheduler.ready.push_back(&thread);
}

}  // namespace

void SeedRandom(uint64_t seed) { random_state = seed * 0x9e3779b97f4a7c15 + 0x1234567; }

uint64_t Random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

bool RunCluster() {
  Start();
  while (scheduler.live_threads > 0) {
    if (scheduler.tick % kInterruptTicks == 0 && world.was_interrupted(world.mark)) {
      AppendReport("interrupted by Ctrl-C");
      return false;
    }
    ++scheduler.tick;
    if (scheduler.next_due <= scheduler.tick) PerformDue();
    if (!scheduler.ready.empty()) {
      Resume(TakeReady());
    } else if (!scheduler.pending.empty()) {
      PerformOne();
    } else {
      ReportDeadlock();
      return false;
    }
    if (IsAborted()) return false;
  }
  while (!scheduler.pending.empty()) Perform(TakePending(scheduler.pending.size() - 1));
  return true;
}

void Issue(AsyncOp op) {
  int timing = world.options.timing;
  if (timing == kTimingRandom) timing = static_cast<int>(Random() % 3);
  if (timing == kTimingEarly) {
    Perform(op);
    return;
  }
  op.due = timing == kTimingLate ? kNever : scheduler.tick + Random() % kMaxDelayTicks;
  scheduler.next_due = std::min(scheduler.next_due, op.due);
  scheduler.pending.push_back(std::move(op));
}

void Block(Op op, uint32_t address, uint32_t value) {
  Thread* const thread = current;
  thread->state = Thread::State::kBlocked;
  thread->blocked_in = op;
  thread->wait_address = address;
  thread->wait_value = value;
  SwitchFiber(thread->fiber, scheduler.fiber);
}

void Wake(Thread* thread) {
  if (thread->state != Thread::State::kBlocked) return;
  thread->state = Thread::State::kReady;
  scheduler.ready.push_back(thread);
}

void WakeAll(std::vector<Thread*>& threads) {
  for (Thread* thread : threads) Wake(thread);
  threads.clear();
}

void LeaveThread() {
  Thread* const thread = current;
  thread->state = Thread::State::kDone;
  --scheduler.live_threads;
  SwitchFiber(thread->fiber, scheduler.fiber);
  __builtin_unreachable();  // nobody resumes a thread that is done
}

}  // namespace fp8gemm::sim
