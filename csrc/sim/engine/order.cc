// SPDX-License-Identifier: Apache-2.0
// Happens-before: what synchronization publishes and who learns it.
//
// Clocks are per warp. Between the lanes of one warp two things are checked: for data that TMA
// brings, that the lane itself has waited on the mbarrier or met a lane that has; and for words
// that lanes exchange, that something came between that may order them.
#include <algorithm>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {

void ReleaseWarpTo(Warp& warp, VectorClock& clock) {
  if (!world.checks_order()) return;
  clock.Join(warp.clock, world.num_slots);
  ++warp.clock.time[warp.number];
}

void ReleaseTo(VectorClock& clock) {
  PublishWaits(*current);
  ReleaseWarpTo(*current->warp, clock);
}

void PublishWaits(Thread& lane) {
  for (const UnpublishedWait& wait : lane.unpublished_waits) {
    if (wait.barrier->phase != wait.phase) continue;
    wait.barrier->observers[wait.index].published = lane.warp->clock.time[lane.warp->number];
  }
  lane.unpublished_waits.clear();
}

void CheckObservers(Mbarrier& barrier) {
  for (const PhaseObserver& observer : barrier.observers) {
    const Thread& lane = *observer.thread;
    const bool is_ordered =
        observer.published != 0 && barrier.arriving.time[lane.warp->number] >= observer.published;
    if (is_ordered) continue;
    Hazard(
        "mbarrier %s completes phase %u, but nothing orders the wait of warp %u lane %u of cta "
        "%u for the phase before it first: the lane may miss that phase and wait for ever",
        SmemName(barrier.address).c_str(), barrier.phase, lane.warp->index, lane.lane(),
        lane.cta->rank);
    break;
  }
  barrier.observers.clear();
}

void AcquireFrom(Warp& warp, const VectorClock& clock) {
  if (!world.checks_order()) return;
  warp.clock.Join(clock, world.num_slots);
  ShareAmongLanes(warp);
}

void AcquireMbarrier(Mbarrier& barrier) {
  if (!world.checks_order()) return;
  VectorClock& clock = current->warp->clock;
  clock.Join(barrier.released, world.num_slots);
  clock.Raise(barrier.slot, barrier.phase);
  const uint32_t num_barriers = world.num_slots - world.first_barrier_slot;
  const uint32_t* const released = barrier.released.time + world.first_barrier_slot;
  for (uint32_t i = 0; i < num_barriers; ++i) {
    current->seen_phase[i] = std::max(current->seen_phase[i], released[i]);
  }
  ++current->warp->lane_epoch;
  uint32_t& own = current->seen_phase[barrier.slot - world.first_barrier_slot];
  own = std::max(own, barrier.phase);
  const uint32_t index = static_cast<uint32_t>(barrier.observers.size());
  current->unpublished_waits.push_back({&barrier, barrier.phase, index});
  barrier.observers.push_back({current, 0});
}

void ShareAmongLanes(Warp& warp) {
  if (!world.checks_order()) return;
  ++warp.lane_epoch;
  const uint32_t num_barriers = world.num_slots - world.first_barrier_slot;
  std::copy_n(warp.clock.time + world.first_barrier_slot, num_barriers, warp.seen_phase.begin());
}

}  // namespace fp8gemm::sim
