// SPDX-License-Identifier: Apache-2.0
// What the files that implement instructions share.
#pragma once
#include "sim/engine/report.h"
#include "sim/engine/scheduler.h"
#include "sim/engine/world.h"

namespace fp8gemm::sim {

/// Meets the other lanes of the warp in an operation that all must execute together.
///
/// Blocks until all 32 have come. The last to come gets true, performs the operation for the warp
/// while the others stay blocked, and ends it with `ReleaseLanes`. `operand` must be the same in
/// all lanes.
bool MeetLanes(Op op, uint64_t operand = 0);

/// Blocks the current lane, and with it its warp, in an operation that the lanes have met in.
void HoldLanes(Op op, uint32_t value = 0);

/// Wakes the lanes that wait in an operation; the current one keeps running.
void ReleaseLanes(Warp& warp);

/// Offset in dynamic shared memory of an address, checked for bounds and alignment.
uint32_t SmemOffset(uint32_t address, uint32_t bytes, uint32_t alignment, const char* what);

/// Checks an access to global memory: in range, and after griddepcontrol.wait if that is needed.
void CheckGlobal(const void* start, uint64_t bytes, const char* what);

/// ld.global.nc reads and any store writes this memory: no launch may do both.
void NoteReadOnly(const void* start, uint32_t bytes);
void NoteWritten(const void* start, uint32_t bytes, const char* what);

/// The current CTA's mbarrier at `bar`; fatal if there is none.
Mbarrier& FindMbarrier(uint32_t bar, const char* what);
/// As above, in another CTA of the cluster; the initializer must have fenced.
Mbarrier& FindMbarrierForAsync(Cta& cta, uint32_t bar, const char* what);
/// The CTA that mapa leads to.
Cta& MapCta(uint32_t cta_rank);
/// Completes bytes that have landed in `cta` on its mbarrier at `bar`.
void CompleteBytes(Cta& cta, uint32_t bar, uint32_t bytes);

// ---- Happens-before: no-ops unless the options ask for it ---------------------------------------

/// Publishes what the current warp has done; what it does next is not part of it.
void ReleaseTo(VectorClock& clock);
/// As `ReleaseTo`, for a given warp.
void ReleaseWarpTo(Warp& warp, VectorClock& clock);
/// The warp learns what others published; all its lanes do.
void AcquireFrom(Warp& warp, const VectorClock& clock);
/// The current lane learns of a completed phase of an mbarrier and what its arrivals published.
void AcquireMbarrier(Mbarrier& barrier);
/// What the lane did so far, its waits above all, precedes what its warp or itself publishes next.
void PublishWaits(Thread& lane);
/// Checks that nobody who has still to see the last completed phase can miss it.
void CheckObservers(Mbarrier& barrier);
/// All lanes of the warp learn what any of them has seen.
void ShareAmongLanes(Warp& warp);
/// Time of a warp at its start.
inline constexpr uint32_t kStarted = 1;

/// Whether the warp knows that `slot` has reached `clock`.
inline bool IsOrdered(const Warp& warp, uint32_t slot, uint32_t clock) {
  return !world.checks_order() || warp.clock.time[slot] >= clock;
}

// ---- Bank conflicts -----------------------------------------------------------------------------

void TraceSharedAccess(uint32_t address, uint32_t bytes);
/// Counts the conflicts of what the warp has accessed since it last met.
void FlushBankTrace(Warp& warp);
void CountMatrixConflicts(const std::array<uint32_t, kWarpLanes>& addresses);

// ---- Exit ---------------------------------------------------------------------------------------

/// Checks what the current thread leaves behind, and its warp and CTA if it is their last.
void CheckThreadExit();
void CheckWgmmaAtExit(const Warp& warp);
void CheckRegistersAtExit(const Cta& cta);
void CheckCtaExit(Cta& cta);
/// The warp counts as arrived at the cluster barrier from now on.
void LeaveClusterBarrier(Warp& warp);

}  // namespace fp8gemm::sim
