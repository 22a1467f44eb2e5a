// SPDX-License-Identifier: Apache-2.0
// mbarrier objects: arrivals, announced bytes, phases.
#include <sim/device/entry_points.h>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {
namespace {

constexpr uint32_t kBarrierBytes = 8;
constexpr uint32_t kMaxCount = (1u << 20) - 1;  // arrivals and bytes alike

Mbarrier* BarrierAt(Cta& cta, uint32_t bar, const char* what) {
  const uint32_t offset = SmemOffset(bar, kBarrierBytes, kBarrierBytes, what);
  const int16_t index = cta.mbarrier_at[offset / kBarrierBytes];
  return index < 0 ? nullptr : &cta.mbarriers[index];
}

Mbarrier& CheckInitialized(Mbarrier* barrier, uint32_t bar, const char* what) {
  if (barrier == nullptr) {
    Fatal("%s on %s, where no mbarrier.init has been executed yet", what, SmemName(bar).c_str());
  }
  const Warp& initializer = *barrier->initializer->warp;
  const uint32_t relaxed_phase = barrier->relaxed_phase;
  if (relaxed_phase != 0 && current->warp->cluster_waits >= relaxed_phase) return *barrier;
  if (!IsOrdered(*current->warp, initializer.number, barrier->init_clock)) {
    Hazard("%s on mbarrier %s is not ordered after its mbarrier.init by warp %u of cta %u", what,
           SmemName(bar).c_str(), initializer.index, initializer.cta->rank);
  }
  return *barrier;
}

// Somebody must have seen a phase complete before anybody arrives in the next one ("Phase of the
// mbarrier object"). Seen at any time before: a multicast load may be all that orders the two.
void CheckPhaseSeen(const Mbarrier& barrier) {
  if (!world.checks_order() || barrier.phase == 0 || !barrier.observers.empty()) return;
  Hazard("mbarrier %s: an arrival in phase %u, but no wait has seen phase %u complete yet",
         SmemName(barrier.address).c_str(), barrier.phase, barrier.phase - 1);
}

// Ends the phase if nothing is missing any more.
void CompletePhaseIfDone(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.tx_count != 0) return;
  if (world.checks_order()) CheckObservers(barrier);
  ++barrier.phase;
  barrier.pending = static_cast<int32_t>(barrier.count);
  if (world.checks_order()) {
    barrier.released.Join(barrier.arriving, world.num_slots);
    barrier.arriving.Clear(world.num_slots);
  }
  WakeAll(barrier.waiting);
}

void Arrive(Mbarrier& barrier, uint32_t tx_bytes) {
  if (barrier.pending == 0) {
    Hazard("mbarrier %s: more arrivals in one phase than its count of %u",
           SmemName(barrier.address).c_str(), barrier.count);
    return;
  }
  CheckPhaseSeen(barrier);
  const int64_t tx_count = int64_t{barrier.tx_count} + tx_bytes;
  if (tx_count > kMaxCount) {
    Hazard("mbarrier %s: tx-count %lld is beyond the range of 2^20 - 1",
           SmemName(barrier.address).c_str(), static_cast<long long>(tx_count));
  }
  ReleaseTo(barrier.arriving);
  barrier.tx_count = static_cast<int32_t>(tx_count);
  --barrier.pending;
  CompletePhaseIfDone(barrier);
}

// Returns the barrier, after the phase of parity `parity`.
Mbarrier& WaitForParity(uint32_t bar, uint32_t parity) {
  constexpr const char* kWhat = "mbarrier.try_wait.parity";
  if (parity > 1) Fatal("%s with parity %u", kWhat, parity);
  Mbarrier& barrier = FindMbarrier(bar, kWhat);
  const uint32_t phase = barrier.phase;
  while ((barrier.phase & 1) == parity) {
    barrier.waiting.push_back(current);
    Block(Op::kMbarrierWait, bar, parity);
  }
  if (barrier.phase > phase + 1) {
    Hazard(
        "%s on %s waited for phase %u and woke in phase %u: the barrier is not held back by "
        "its waiters",
        kWhat, SmemName(bar).c_str(), phase, barrier.phase);
  }
  AcquireMbarrier(barrier);
  return barrier;
}

}  // namespace

Cta& MapCta(uint32_t cta_rank) {
  if (cta_rank >= world.kernel->cluster) {
    Fatal("mapa to cta %u of a cluster of %u", cta_rank, world.kernel->cluster);
  }
  return world.ctas[cta_rank];
}

Mbarrier& FindMbarrier(uint32_t bar, const char* what) {
  return CheckInitialized(BarrierAt(*current->cta, bar, what), bar, what);
}

Mbarrier& FindMbarrierForAsync(Cta& cta, uint32_t bar, const char* what) {
  Mbarrier& barrier = CheckInitialized(BarrierAt(cta, bar, what), bar, what);
  if (barrier.init_number > barrier.initializer->fenced_inits) {
    Hazard(
        "%s on mbarrier %s of cta %u, whose mbarrier.init by warp %u was not followed by "
        "fence.mbarrier_init there",
        what, SmemName(bar).c_str(), cta.rank, barrier.initializer->warp->index);
  }
  return barrier;
}

void CompleteBytes(Cta& cta, uint32_t bar, uint32_t bytes) {
  Mbarrier& barrier = cta.mbarriers[cta.mbarrier_at[(bar - kSmemBase) / kBarrierBytes]];
  barrier.tx_count -= static_cast<int32_t>(bytes);
  if (barrier.tx_count < -static_cast<int32_t>(kMaxCount)) {
    Hazard("mbarrier %s: tx-count %d is beyond the range of 2^20 - 1", SmemName(bar).c_str(),
           barrier.tx_count);
  }
  CompletePhaseIfDone(barrier);
}

void MbarrierInit(uint32_t bar, uint32_t count) {
  Cta& cta = *current->cta;
  const uint32_t offset = SmemOffset(bar, kBarrierBytes, kBarrierBytes, "mbarrier.init");
  if (count == 0 || count > kMaxCount) {
    Fatal("mbarrier.init of %s with count %u: must be 1 to 2^20 - 1", SmemName(bar).c_str(), count);
  }
  if (cta.mbarrier_at[offset / kBarrierBytes] >= 0) {
    Fatal("mbarrier.init of %s, which is an mbarrier already", SmemName(bar).c_str());
  }
  if (world.num_slots - world.first_barrier_slot == kMaxBarriers) {
    Fatal("more than %u mbarriers in a cluster: the simulator has no room", kMaxBarriers);
  }
  cta.shadow.PlaceBarrier(*current, offset);
  cta.mbarrier_at[offset / kBarrierBytes] = static_cast<int16_t>(cta.mbarriers.size());
  Mbarrier& barrier = cta.mbarriers.emplace_back();
  barrier.address = bar;
  barrier.count = count;
  barrier.pending = static_cast<int32_t>(count);
  barrier.slot = world.num_slots++;
  barrier.initializer = current;
  barrier.init_number = ++current->num_inits;
  barrier.init_clock = current->warp->clock.time[current->warp->number];
}

void FenceMbarrierInit() { current->fenced_inits = current->num_inits; }

void MbarrierArrive(uint32_t bar) { Arrive(FindMbarrier(bar, "mbarrier.arrive"), 0); }

void MbarrierArriveExpectTx(uint32_t bar, uint32_t tx_bytes) {
  Arrive(FindMbarrier(bar, "mbarrier.arrive.expect_tx"), tx_bytes);
}

void MbarrierArriveCluster(uint32_t bar, uint32_t cta_rank) {
  constexpr const char* kWhat = "mbarrier.arrive.shared::cluster";
  Cta& cta = MapCta(cta_rank);
  if (cta.live_threads == 0) {
    Hazard("%s on %s of cta %u, which has exited", kWhat, SmemName(bar).c_str(), cta_rank);
    return;
  }
  if (&cta == current->cta) {
    Arrive(FindMbarrier(bar, kWhat), 0);
    return;
  }
  const Warp& warp = *current->warp;
  cta.remote_arrivals[warp.number] = warp.clock.time[warp.number];
  Arrive(FindMbarrierForAsync(cta, bar, kWhat), 0);
}

void MbarrierWaitParity(uint32_t bar, uint32_t parity) {
  if (!WaitForParity(bar, parity).has_cluster_release) return;
  Hazard(
      "mbarrier.try_wait.parity on %s acquires at cta scope what another cta has released to "
      "the cluster",
      SmemName(bar).c_str());
}

void MbarrierWaitParityCluster(uint32_t bar, uint32_t parity) { WaitForParity(bar, parity); }

}  // namespace fp8gemm::sim
