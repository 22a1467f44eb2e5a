// SPDX-License-Identifier: Apache-2.0
// Happens-before: what synchronisation publishes and who learns it.
//
// Clocks are per warp: a race between lanes of one warp goes unseen, except for data that TMA
// brings. There each lane must itself have waited on the mbarrier, or met a lane that has.
#include <algorithm>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {

void ReleaseWarpTo(Warp& warp, VectorClock& clock) {
  if (!world.checks_order()) return;
  clock.Join(warp.clock, world.num_slots);
  ++warp.clock.time[warp.number];
}

void ReleaseTo(VectorClock& clock) { ReleaseWarpTo(*current->warp, clock); }

void AcquireFrom(Warp& warp, const VectorClock& clock) {
  if (!world.checks_order()) return;
  warp.clock.Join(clock, world.num_slots);
  ShareAmongLanes(warp);
}

void AcquireMbarrier(const Mbarrier& barrier) {
  if (!world.checks_order()) return;
  VectorClock& clock = current->warp->clock;
  clock.Join(barrier.released, world.num_slots);
  clock.Raise(barrier.slot, barrier.phase);
  const uint32_t num_barriers = world.num_slots - world.first_barrier_slot;
  const uint32_t* const released = barrier.released.time + world.first_barrier_slot;
  for (uint32_t i = 0; i < num_barriers; ++i) {
    current->seen_phase[i] = std::max(current->seen_phase[i], released[i]);
  }
  uint32_t& own = current->seen_phase[barrier.slot - world.first_barrier_slot];
  own = std::max(own, barrier.phase);
}

void ShareAmongLanes(Warp& warp) {
  if (!world.checks_order()) return;
  const uint32_t num_barriers = world.num_slots - world.first_barrier_slot;
  std::copy_n(warp.clock.time + world.first_barrier_slot, num_barriers, warp.seen_phase.begin());
}

bool IsOrdered(const Warp& warp, uint32_t slot, uint32_t clock) {
  return !world.checks_order() || warp.clock.time[slot] >= clock;
}

}  // namespace fp8gemm::sim
