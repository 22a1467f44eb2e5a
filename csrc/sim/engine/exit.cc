// SPDX-License-Identifier: Apache-2.0
// What a thread, a warp and a CTA must have finished before they exit.
#include "sim/engine/instructions.h"

namespace fp8gemm::sim {
namespace {

void CheckBulkGroups(const BulkGroups& bulk) {
  if (bulk.open_id != 0) {
    Hazard("thread exits with a TMA store that it has not committed");
  } else if (bulk.waited < bulk.unread.size()) {
    Hazard(
        "thread exits with TMA stores that may still be reading shared memory: "
        "cp.async.bulk.wait_group.read has covered %u of its %zu groups",
        bulk.waited, bulk.unread.size());
  }
}

}  // namespace

// The CTA's memory goes away with its last thread, so whatever peers and TMA do there must be
// ordered before something that a thread of the CTA knows.
void CheckCtaExit(Cta& cta) {
  if (!world.checks_order()) return;
  VectorClock known;
  for (const Warp& warp : cta.warps) known.Join(warp.clock, world.num_slots);
  for (uint32_t warp = 0; warp < cta.remote_arrivals.size(); ++warp) {
    if (known.time[warp] >= cta.remote_arrivals[warp]) continue;
    const uint32_t warps_per_cta = static_cast<uint32_t>(cta.warps.size());
    Hazard("CTA exits, but nothing orders a remote mbarrier.arrive by warp %u of cta %u before it",
           warp % warps_per_cta, warp / warps_per_cta);
    break;
  }
  for (const Mbarrier& barrier : cta.mbarriers) {
    if (known.time[barrier.slot] >= barrier.async_clock) continue;
    Hazard(
        "CTA exits, but no thread has waited for the last TMA load or st.async that signals "
        "mbarrier %s",
        SmemName(barrier.address).c_str());
    break;
  }
}

void CheckThreadExit() {
  Thread& thread = *current;
  Warp& warp = *thread.warp;
  Cta& cta = *thread.cta;
  CheckBulkGroups(thread.bulk);
  if (warp.met_lanes != 0) {
    Hazard("thread exits while lanes %s of its warp wait for it at %s",
           BitRanges(warp.met_lanes).c_str(), OpName(warp.meeting_op));
  }
  if (--warp.live_lanes == 0) {
    FlushBankTrace(warp);
    CheckWgmmaAtExit(warp);
    LeaveClusterBarrier(warp);
  }
  if (--cta.live_threads != 0) return;
  CheckRegistersAtExit(cta);
  CheckCtaExit(cta);
}

}  // namespace fp8gemm::sim
