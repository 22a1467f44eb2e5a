// SPDX-License-Identifier: Apache-2.0
// The deadlock report: groups of threads that wait for the same thing, with its state.
#include "sim/engine/deadlock.h"

#include <cstdio>
#include <string>
#include <vector>

#include "sim/engine/report.h"
#include "sim/engine/world.h"

namespace fp8gemm::sim {
namespace {

struct Group {
  std::string wait;
  std::vector<uint32_t> lanes;  // [warp of the CTA] mask
};

std::string DescribeMbarrier(const Thread& thread) {
  const uint32_t index = (thread.wait_address - kSmemBase) / 8;
  const Mbarrier& barrier = thread.cta->mbarriers[thread.cta->mbarrier_at[index]];
  char text[160];
  std::snprintf(text, sizeof text,
                " for parity %u: phase %u (parity %u), pending arrivals %d of %u, tx-count %d",
                thread.wait_value, barrier.phase, barrier.phase & 1, barrier.pending, barrier.count,
                barrier.tx_count);
  return "mbarrier " + SmemName(barrier.address) + text;
}

std::string DescribeBarrier(const Thread& thread) {
  const NamedBarrier& barrier = thread.cta->barriers[thread.wait_value];
  return "barrier " + std::to_string(thread.wait_value) + ": " + std::to_string(barrier.arrived) +
         " of " + std::to_string(barrier.threads) + " threads have arrived";
}

std::string DescribeRegisters(const Thread& thread) {
  const uint32_t needed = (thread.wait_value - thread.warp->registers) * kWarpLanes;
  return std::string(OpName(thread.blocked_in)) + " " + std::to_string(thread.wait_value) +
         ": the warp needs " + std::to_string(needed) + " more registers, " +
         std::to_string(thread.cta->free_registers) + " of the CTA are free";
}

bool IsWaitOfOneLane(Op op) { return op == Op::kMbarrierWait || op == Op::kBulkWait; }

std::string DescribeWait(const Thread& blocked) {
  const Warp& warp = *blocked.warp;
  if ((warp.met_lanes >> blocked.lane() & 1) != 0) {
    return std::string(OpName(blocked.blocked_in)) + ": lanes " +
           BitRanges(~warp.met_lanes & 0xffffffffu) + " of the warp have not reached it";
  }
  const bool is_held = warp.holder != nullptr && !IsWaitOfOneLane(blocked.blocked_in);
  const Thread& thread = is_held ? *warp.holder : blocked;
  switch (thread.blocked_in) {
    case Op::kMbarrierWait: return DescribeMbarrier(thread);
    case Op::kBarrierSync: return DescribeBarrier(thread);
    case Op::kSetMaxRegistersInc: return DescribeRegisters(thread);
    case Op::kWgmmaWait:
      return std::string(OpName(Op::kWgmmaWait)) + ": " +
             std::to_string(thread.warp->warpgroup->done) + " of the " +
             std::to_string(thread.warp->wgmma_group) +
             " groups of this warp are finished; another warp has not committed";
    case Op::kClusterWait:
      return std::string(OpName(Op::kClusterWait)) + ": " +
             std::to_string(world.cluster_barrier.arrived) + " of " +
             std::to_string(world.num_warps) + " warps have arrived, " +
             std::to_string(world.cluster_barrier.exited) + " have exited";
    default: return OpName(thread.blocked_in);
  }
}

// "warps 0-3" when all their lanes wait, "warp 4 lanes 0-30" otherwise.
std::string DescribeThreads(const Group& group) {
  uint64_t whole_warps = 0;
  std::string text;
  for (uint32_t warp = 0; warp < group.lanes.size(); ++warp) {
    const uint32_t lanes = group.lanes[warp];
    if (lanes == 0xffffffffu) {
      whole_warps |= uint64_t{1} << warp;
    } else if (lanes != 0) {
      text += " warp " + std::to_string(warp) + " lanes " + BitRanges(lanes);
    }
  }
  if (whole_warps != 0) text = " warps " + BitRanges(whole_warps) + text;
  return text;
}

void ReportCta(const Cta& cta) {
  std::vector<Group> groups;
  for (const Thread& thread : world.threads) {
    if (thread.cta != &cta || thread.state != Thread::State::kBlocked) continue;
    const std::string wait = DescribeWait(thread);
    size_t i = 0;
    while (i < groups.size() && groups[i].wait != wait) ++i;
    if (i == groups.size()) groups.push_back({wait, std::vector<uint32_t>(cta.warps.size())});
    groups[i].lanes[thread.warp->index] |= 1u << thread.lane();
  }
  for (const Group& group : groups) {
    AppendReport("  block " + std::to_string(cta.block_idx) + " (cta " + std::to_string(cta.rank) +
                 ")" + DescribeThreads(group) + " wait in " + group.wait);
  }
}

}  // namespace

void ReportDeadlock() {
  AppendReport("DEADLOCK: no thread can run and no asynchronous operation is pending");
  for (uint32_t rank = 0; rank < world.kernel->cluster; ++rank) ReportCta(world.ctas[rank]);
}

}  // namespace fp8gemm::sim
