// SPDX-License-Identifier: Apache-2.0
// The barrier of a cluster, and griddepcontrol.
#include <sim/device/entry_points.h>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {
namespace {

void CompleteIfAllArrived() {
  ClusterBarrier& barrier = world.cluster_barrier;
  if (barrier.arrived == 0 || barrier.arrived + barrier.exited < world.num_warps) return;
  barrier.arrived = 0;
  ++barrier.phase;
  barrier.released = barrier.arriving;
  barrier.arriving.Clear(world.num_slots);
  WakeAll(barrier.waiting);
}

// A release publishes everything that the warp has done.
void ReleaseToCluster() { ReleaseTo(world.cluster_barrier.arriving); }

// Without one, that it has started, and the barriers whose initialization it has fenced.
void PublishInits() {
  const Warp& warp = *current->warp;
  world.cluster_barrier.arriving.Raise(warp.number, kStarted);
  for (Mbarrier& barrier : warp.cta->mbarriers) {
    const bool is_own = barrier.initializer->warp == &warp && barrier.relaxed_phase == 0;
    if (is_own && barrier.init_number <= barrier.initializer->fenced_inits) {
      barrier.relaxed_phase = world.cluster_barrier.phase + 1;
    }
  }
}

void ArriveAtCluster(void (*publish)()) {
  if (!MeetLanes(Op::kClusterArrive)) return;
  Warp& warp = *current->warp;
  ClusterBarrier& barrier = world.cluster_barrier;
  if (warp.cluster_arrived) Fatal("barrier.cluster.arrive twice without a wait between");
  warp.cluster_arrived = true;
  warp.cluster_phase = barrier.phase;
  ++barrier.arrived;
  publish();
  CompleteIfAllArrived();
  ReleaseLanes(warp);
}

}  // namespace

void ClusterArrive() { ArriveAtCluster(ReleaseToCluster); }
void ClusterArriveRelaxed() { ArriveAtCluster(PublishInits); }

void ClusterWait() {
  if (!MeetLanes(Op::kClusterWait)) return;
  Warp& warp = *current->warp;
  ClusterBarrier& barrier = world.cluster_barrier;
  if (!warp.cluster_arrived) Fatal("barrier.cluster.wait without an arrive");
  while (barrier.phase == warp.cluster_phase) {
    barrier.waiting.push_back(current);
    HoldLanes(Op::kClusterWait);
  }
  warp.cluster_arrived = false;
  warp.cluster_waits = warp.cluster_phase + 1;
  AcquireFrom(warp, barrier.released);
  ReleaseLanes(warp);
}

void LeaveClusterBarrier(Warp& warp) {
  if (!warp.cluster_arrived) {
    ++world.cluster_barrier.exited;
    ReleaseWarpTo(warp, world.cluster_barrier.arriving);
    CompleteIfAllArrived();
    return;
  }
  Hazard("warp exits between barrier.cluster.arrive and barrier.cluster.wait");
}

// Ordered like any other wait: what follows it, by synchronization too, may touch global memory.
void GridDependencyWait() {
  world.grid_dependency_waited = true;
  current->warp->clock.Raise(world.grid_slot, 1);
}

}  // namespace fp8gemm::sim
