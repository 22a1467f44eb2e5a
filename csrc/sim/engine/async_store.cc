// SPDX-License-Identifier: Apache-2.0
// st.async: stores into a CTA of the cluster that complete bytes on an mbarrier there.
#include <sim/device/entry_points.h>

#include <cstring>
#include <utility>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {
namespace {

constexpr const char* kWhat = "st.async";

// A CTA must know that a peer has started before it touches the peer's shared memory: anything that
// orders it after one of the peer's warps tells ("Cluster of cooperative thread arrays").
void CheckStarted(const Cta& cta, const char* what) {
  if (!world.checks_order()) return;
  const VectorClock& known = current->warp->clock;
  for (const Warp& warp : cta.warps) {
    if (known.time[warp.number] != 0) return;
  }
  Hazard("%s to cta %u, but nothing orders it after that cta has started", what, cta.rank);
}

}  // namespace

void StoreAsyncV4F32(uint32_t address, uint32_t bar, uint32_t cta_rank, float x, float y, float z,
                     float w) {
  if (world.kernel->cluster < 2) Fatal("%s in a cluster of one", kWhat);
  AsyncStore store{.cta = &MapCta(cta_rank), .bar = bar, .values = {x, y, z, w}};
  store.offset = SmemOffset(address, sizeof store.values, sizeof store.values, kWhat);
  Cta& cta = *store.cta;
  if (cta.live_threads == 0) {
    Hazard("%s to %s of cta %u, which has exited", kWhat, SmemName(address).c_str(), cta_rank);
    return;
  }
  CheckStarted(cta, kWhat);
  Mbarrier& barrier = FindMbarrierForAsync(cta, bar, kWhat);
  barrier.async_clock = barrier.phase + 1;
  barrier.has_cluster_release = true;
  const AsyncAccess access = {true, barrier.slot, barrier.phase + 1, kWhat};
  cta.shadow.CheckAsync(access, &store.offset, 1);
  cta.shadow.BeginAsync(access, &store.offset, 1);
  AsyncOp op;
  op.kind = AsyncOp::Kind::kAsyncStore;
  op.store = store;
  Issue(std::move(op));
}

void FinishAsyncStore(const AsyncStore& store) {
  Cta& cta = *store.cta;
  if (cta.live_threads == 0) {
    Hazard("%s lands at %s of cta %u, which has exited", kWhat,
           SmemName(kSmemBase + store.offset).c_str(), cta.rank);
    return;
  }
  std::memcpy(cta.smem + store.offset, store.values.data(), sizeof store.values);
  cta.shadow.EndAsync(true, &store.offset, 1);
  CompleteBytes(cta, store.bar, sizeof store.values);
}

}  // namespace fp8gemm::sim
