// SPDX-License-Identifier: Apache-2.0
// Identity of a thread, operations of a whole warp, and barriers of a CTA.
#include <sim/device/entry_points.h>

#include <algorithm>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {
namespace {

constexpr uint32_t kAllLanes = 0xffffffff;

// Completes a barrier: every waiting warp learns what all of them published.
void CompleteBarrier(NamedBarrier& barrier) {
  barrier.arrived = 0;
  barrier.last.clear();
  for (Warp* warp : barrier.waiting) {
    barrier.last.push_back({warp, barrier.arriving.time[warp->number]});
    AcquireFrom(*warp, barrier.arriving);
    ReleaseLanes(*warp);
  }
  barrier.waiting.clear();
  barrier.arriving.Clear(world.num_slots);
}

// A warp that might have come earlier could have completed the last use in another's place.
void CheckBarrierReuse(const Warp& warp, const NamedBarrier& barrier, uint32_t id) {
  for (const Arrival& arrival : barrier.last) {
    if (IsOrdered(warp, arrival.warp->number, arrival.clock)) continue;
    Hazard("barrier.sync %u is not ordered after its last use, by warp %u: the two uses may mix",
           id, arrival.warp->index);
    return;
  }
}

void ArriveAtBarrier(uint32_t id, uint32_t threads) {
  Warp& warp = *current->warp;
  NamedBarrier& barrier = warp.cta->barriers[id];
  CheckBarrierReuse(warp, barrier, id);
  if (barrier.arrived != 0 && barrier.threads != threads) {
    Fatal("barrier.sync %u with %u threads, but the warps that wait there expect %u", id, threads,
          barrier.threads);
  }
  barrier.threads = threads;
  barrier.arrived += kWarpLanes;
  barrier.waiting.push_back(&warp);
  ReleaseTo(barrier.arriving);
  if (barrier.arrived == threads) {
    CompleteBarrier(barrier);
  } else {
    HoldLanes(Op::kBarrierSync, id);
  }
}

// Meets the other lanes and returns this lane's part of what `combine(in, out)` makes of everyone's
// `value`. Results have a place of their own: a lane may already bring its next value while others
// have not yet taken this result.
template <typename Combine>
uint32_t ExchangeLanes(Op op, uint32_t operand, uint32_t value, Combine combine) {
  Warp& warp = *current->warp;
  warp.exchange_in[current->lane()] = value;
  if (MeetLanes(op, operand)) {
    combine(warp.exchange_in, warp.exchange_out);
    ReleaseLanes(warp);
  }
  return warp.exchange_out[current->lane()];
}

using LaneValues = std::array<uint32_t, kWarpLanes>;

}  // namespace

bool MeetLanes(Op op, uint64_t operand) {
  Warp& warp = *current->warp;
  if (warp.met_lanes == 0) {
    warp.meeting_op = op;
    warp.meeting_operand = operand;
  } else if (warp.meeting_op != op) {
    Fatal("%s in divergent code: lanes %s of the warp are at %s", OpName(op),
          BitRanges(warp.met_lanes).c_str(), OpName(warp.meeting_op));
  } else if (warp.meeting_operand != operand) {
    Fatal("%s with different operands in the lanes of a warp: %#llx, and %#llx in lanes %s",
          OpName(op), static_cast<unsigned long long>(operand),
          static_cast<unsigned long long>(warp.meeting_operand), BitRanges(warp.met_lanes).c_str());
  }
  warp.met_lanes |= 1u << current->lane();
  if (warp.met_lanes != kAllLanes) {
    Block(op);
    return false;
  }
  warp.met_lanes = 0;
  for (uint32_t lane = 0; lane < kWarpLanes; ++lane) PublishWaits(warp.lanes[lane]);
  FlushBankTrace(warp);
  return true;
}

void HoldLanes(Op op, uint32_t value) {
  Warp& warp = *current->warp;
  warp.holder = current;
  Block(op, 0, value);
  warp.holder = nullptr;
}

void ReleaseLanes(Warp& warp) {
  for (uint32_t lane = 0; lane < kWarpLanes; ++lane) Wake(&warp.lanes[lane]);
}

uint32_t ThreadIdx() { return current->index; }
uint32_t BlockIdx() { return current->cta->block_idx; }
uint32_t GridDim() { return world.grid; }
uint32_t ClusterCtaRank() { return current->cta->rank; }
uint32_t DynamicSmem() { return kSmemBase; }

uint32_t ShflWarpIdx() {
  if (MeetLanes(Op::kShfl)) ReleaseLanes(*current->warp);
  return current->warp->index;
}

uint32_t VoteBallot(bool predicate) {
  return ExchangeLanes(Op::kVote, 0, predicate, [](const LaneValues& in, LaneValues& out) {
    uint32_t bits = 0;
    for (uint32_t lane = 0; lane < kWarpLanes; ++lane) bits |= in[lane] << lane;
    out.fill(bits);
  });
}

uint32_t ReduxMax(uint32_t value) {
  return ExchangeLanes(Op::kRedux, 0, value, [](const LaneValues& in, LaneValues& out) {
    out.fill(*std::max_element(in.begin(), in.end()));
  });
}

uint32_t ShflUp(uint32_t value, uint32_t delta) {
  return ExchangeLanes(Op::kShfl, delta, value, [delta](const LaneValues& in, LaneValues& out) {
    for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
      out[lane] = in[lane < delta ? lane : lane - delta];
    }
  });
}

uint32_t ShflIdx(uint32_t value, uint32_t source) {
  if (source >= kWarpLanes) Fatal("shfl.sync.idx from lane %u", source);
  const uint32_t operand = kWarpLanes + source;
  return ExchangeLanes(Op::kShfl, operand, value,
                       [source](const LaneValues& in, LaneValues& out) { out.fill(in[source]); });
}

// The same lane every time, but the instruction set does not say which.
bool ElectSync() {
  if (MeetLanes(Op::kElect)) ReleaseLanes(*current->warp);
  return current->lane() == world.elected_lane;
}

void BarWarpSync() {
  if (!MeetLanes(Op::kBarWarpSync)) return;
  ShareAmongLanes(*current->warp);
  ReleaseLanes(*current->warp);
}

void BarrierSync(uint32_t id, uint32_t threads) {
  if (id >= kNamedBarriers) Fatal("barrier.sync %u: there are 16 barriers", id);
  if (threads == 0 || threads % kWarpLanes != 0 || threads > world.kernel->threads) {
    Fatal("barrier.sync %u for %u threads of a CTA of %u", id, threads, world.kernel->threads);
  }
  const uint64_t operand = uint64_t{id} << 32 | threads;
  if (MeetLanes(Op::kBarrierSync, operand)) ArriveAtBarrier(id, threads);
}

}  // namespace fp8gemm::sim
