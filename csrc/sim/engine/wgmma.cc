// SPDX-License-Identifier: Apache-2.0
// wgmma: asynchronous operations of a warpgroup on its accumulator registers.
//
// The registers of an operation are filled with NaN when it is issued and get their result in the
// wait_group that covers it, as the instruction set promises and not a moment earlier. In between,
// the result lives in a tile of the warpgroup; the operation runs once, when all four warps have
// committed its group.
#include <sim/device/entry_points.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "sim/engine/instructions.h"
#include "sim/engine/mma_math.h"
#include "sim/engine/wgmma_operands.h"

namespace fp8gemm::sim {
namespace {

constexpr uint32_t kPoisonBits = 0x7fc0dead;  // a NaN that no arithmetic yields

// Calls `visit(register, element of the (64, n) tile)` for the fragment of one thread.
template <typename Visitor>
void VisitFragment(float* registers, uint32_t warp, uint32_t lane, uint32_t n, float* tile,
                   const Visitor& visit) {
  float* const upper = tile + (warp * 16 + lane / 4) * n + lane % 4 * 2;
  float* const lower = upper + 8 * n;
  for (uint32_t i = 0; i < n / 8; ++i) {
    visit(registers[4 * i], upper[8 * i]);
    visit(registers[4 * i + 1], upper[8 * i + 1]);
    visit(registers[4 * i + 2], lower[8 * i]);
    visit(registers[4 * i + 3], lower[8 * i + 1]);
  }
}

template <typename Visitor>
void VisitWarp(Accumulator& accumulator, uint32_t warp, const Visitor& visit) {
  for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
    VisitFragment(accumulator.registers[warp][lane], warp, lane, accumulator.n,
                  accumulator.tile.data(), visit);
  }
}

void CheckUntouched(const Accumulator& accumulator, uint32_t warp) {
  uint32_t difference = 0;
  for (const float* const registers : accumulator.registers[warp]) {
    for (uint32_t i = 0; i < accumulator.n / 2; ++i) {
      difference |= std::bit_cast<uint32_t>(registers[i]) ^ kPoisonBits;
    }
  }
  if (difference != 0) {
    Hazard("accumulator registers were written while a wgmma on them is in flight");
  }
}

WgmmaGroup& GroupAt(Warpgroup& warpgroup, uint32_t number) {
  while (warpgroup.groups.size() <= number - warpgroup.first_group) {
    warpgroup.groups.emplace_back();
  }
  return warpgroup.groups[number - warpgroup.first_group];
}

// The accumulator that this warp already has in flight in the given registers.
Accumulator* FindHeld(const Warp& warp) {
  const uint32_t index = warp.index % kWarpgroupWarps;
  for (const auto& accumulator : warp.warpgroup->accumulators) {
    const bool is_held = (accumulator->holders >> index & 1) != 0;
    if (is_held && accumulator->registers[index][0] == warp.accumulators[0]) {
      return accumulator.get();
    }
  }
  return nullptr;
}

Accumulator* TakeAccumulator(Warpgroup& warpgroup, uint32_t n) {
  for (const auto& accumulator : warpgroup.accumulators) {
    if (accumulator->holders != 0) continue;
    accumulator->n = n;
    return accumulator.get();
  }
  warpgroup.accumulators.push_back(std::make_unique<Accumulator>());
  warpgroup.accumulators.back()->n = n;
  return warpgroup.accumulators.back().get();
}

void HoldAccumulator(Warp& warp, Accumulator& accumulator, bool load) {
  const uint32_t index = warp.index % kWarpgroupWarps;
  accumulator.registers[index] = warp.accumulators;
  accumulator.holders |= 1u << index;
  VisitWarp(accumulator, index, [load](float& value, float& element) {
    if (load) element = value;
    value = std::bit_cast<float>(kPoisonBits);
  });
}

// Gives this warp's part of the result to its registers.
void RetireAccumulator(Accumulator& accumulator, uint32_t warp) {
  CheckUntouched(accumulator, warp);
  VisitWarp(accumulator, warp, [](float& value, float& element) { value = element; });
  accumulator.holders &= ~(1u << warp);
}

WgmmaOp& NewOp(Warp& warp, WgmmaGroup& group, const WgmmaOperands& operands) {
  Warpgroup& warpgroup = *warp.warpgroup;
  if (warpgroup.spare_ops.empty()) warpgroup.spare_ops.push_back(std::make_unique<WgmmaOp>());
  group.ops.push_back(std::move(warpgroup.spare_ops.back()));
  warpgroup.spare_ops.pop_back();
  WgmmaOp& op = *group.ops.back();
  op.operands = operands;
  ListChunks(operands.a_desc, kMmaRows, "wgmma A", op.chunks.data());
  ListChunks(operands.b_desc, operands.n, "wgmma B", op.chunks.data() + 2 * kMmaRows);
  Accumulator* held = FindHeld(warp);
  op.accumulator = held != nullptr ? held : TakeAccumulator(warpgroup, operands.n);
  const AsyncAccess access = {false, warpgroup.slot, 0, "wgmma"};
  warp.cta->shadow.BeginAsync(access, op.chunks.data(), op.num_chunks());
  return op;
}

// The next operation of the open group, created by the first warp that comes to it.
WgmmaOp& JoinOp(Warp& warp, const WgmmaOperands& operands) {
  WgmmaGroup& group = GroupAt(*warp.warpgroup, warp.wgmma_group);
  const uint32_t position = warp.wgmma_op++;
  if (position == group.ops.size()) {
    if (group.committed_warps != 0) {
      Fatal(
          "wgmma groups differ between the warps of a warpgroup: another committed after %u "
          "operations",
          position);
    }
    return NewOp(warp, group, operands);
  }
  WgmmaOp& op = *group.ops[position];
  if (op.operands != operands) {
    Fatal(
        "wgmma operands differ between the warps of a warpgroup: N %u, A %#llx, B %#llx here, "
        "N %u, A %#llx, B %#llx in another",
        operands.n, static_cast<unsigned long long>(operands.a_desc),
        static_cast<unsigned long long>(operands.b_desc), op.operands.n,
        static_cast<unsigned long long>(op.operands.a_desc),
        static_cast<unsigned long long>(op.operands.b_desc));
  }
  return op;
}

void IssueForWarp(Warp& warp, const WgmmaOperands& operands) {
  const uint32_t index = warp.index % kWarpgroupWarps;
  if (!warp.wgmma_fenced) {
    Hazard("wgmma without a wgmma.fence since the accumulator registers were last accessible");
    warp.wgmma_fenced = true;
  }
  WgmmaOp& op = JoinOp(warp, operands);
  const AsyncAccess access = {false, warp.warpgroup->slot, warp.wgmma_group + 1, "wgmma"};
  warp.cta->shadow.CheckAsync(access, op.chunks.data(), op.num_chunks());
  Accumulator& accumulator = *op.accumulator;
  if ((accumulator.holders >> index & 1) == 0) {
    HoldAccumulator(warp, accumulator, operands.scale_d);
  } else if (accumulator.registers[index] != warp.accumulators || accumulator.n != operands.n) {
    Fatal("wgmma on accumulator registers that overlap those of an operation in flight");
  } else {
    CheckUntouched(accumulator, index);
  }
  accumulator.last_group[index] = warp.wgmma_group;
}

void Execute(Warpgroup& warpgroup, WgmmaOp& op) {
  alignas(64) static uint8_t rows[(kMmaRows + kMaxMmaColumns) * kMmaDepth];
  const Cta& cta = *warpgroup.cta;
  for (uint32_t i = 0; i < op.num_chunks(); ++i) {
    std::memcpy(rows + 16 * i, cta.smem + op.chunks[i], 16);
  }
  const WgmmaOperands& operands = op.operands;
  const MmaOperands math = {rows, rows + kMmaRows * kMmaDepth, operands.n, operands.a_type,
                            operands.b_type};
  Multiply(math, static_cast<Numerics>(world.options.numerics), operands.scale_d,
           op.accumulator->tile.data());
  warpgroup.cta->shadow.EndAsync(false, op.chunks.data(), op.num_chunks());
  ++world.stats.wgmma;
}

}  // namespace

void WgmmaFence() {
  if (!MeetLanes(Op::kWgmmaFence)) return;
  current->warp->wgmma_fenced = true;
  ReleaseLanes(*current->warp);
}

void Wgmma(float* d, uint32_t n, uint32_t a_type, uint32_t b_type, uint64_t a_desc, uint64_t b_desc,
           bool scale_d) {
  const WgmmaOperands operands = {n, a_type, b_type, a_desc, b_desc, scale_d};
  Warp& warp = *current->warp;
  warp.accumulators[current->lane()] = d;
  if (!MeetLanes(Op::kWgmma, Fingerprint(operands))) return;
  IssueForWarp(warp, operands);
  ReleaseLanes(warp);
}

void WgmmaCommitGroup() {
  if (!MeetLanes(Op::kWgmmaCommit)) return;
  Warp& warp = *current->warp;
  Warpgroup& warpgroup = *warp.warpgroup;
  const uint32_t number = warp.wgmma_group++;
  WgmmaGroup& group = GroupAt(warpgroup, number);
  if (warp.wgmma_op != group.ops.size()) {
    Fatal("wgmma.commit_group after %u operations, but another warp of the warpgroup issued %zu",
          warp.wgmma_op, group.ops.size());
  }
  warp.wgmma_op = 0;
  if (++group.committed_warps == kWarpgroupWarps) {
    AsyncOp op;
    op.kind = AsyncOp::Kind::kWgmma;
    op.warpgroup = &warpgroup;
    op.group = number;
    Issue(std::move(op));
  }
  ReleaseLanes(warp);
}

// Groups finish in order: an operation chained on an accumulator needs its predecessor.
void FinishWgmma(Warpgroup& warpgroup, uint32_t last_group) {
  while (warpgroup.done <= last_group) {
    WgmmaGroup& group = warpgroup.groups.front();
    for (auto& op : group.ops) {
      Execute(warpgroup, *op);
      warpgroup.spare_ops.push_back(std::move(op));
    }
    warpgroup.groups.pop_front();
    ++warpgroup.first_group;
    ++warpgroup.done;
  }
  WakeAll(warpgroup.waiting);
}

void WgmmaWaitGroup(uint32_t max_pending) {
  if (!MeetLanes(Op::kWgmmaWait, max_pending)) return;
  Warp& warp = *current->warp;
  Warpgroup& warpgroup = *warp.warpgroup;
  const uint32_t index = warp.index % kWarpgroupWarps;
  const uint32_t covered = warp.wgmma_group - std::min(warp.wgmma_group, max_pending);
  while (warpgroup.done < covered) {
    warpgroup.waiting.push_back(current);
    HoldLanes(Op::kWgmmaWait, max_pending);
  }
  warp.clock.Raise(warpgroup.slot, covered);
  warp.wgmma_fenced = false;
  for (const auto& accumulator : warpgroup.accumulators) {
    const bool is_held = (accumulator->holders >> index & 1) != 0;
    const bool has_open_op = accumulator->last_group[index] >= covered;
    if (is_held && !has_open_op) RetireAccumulator(*accumulator, index);
  }
  ReleaseLanes(warp);
}

void CheckWgmmaAtExit(const Warp& warp) {
  const uint32_t index = warp.index % kWarpgroupWarps;
  for (const auto& accumulator : warp.warpgroup->accumulators) {
    if ((accumulator->holders >> index & 1) == 0) continue;
    Hazard("warp exits with a wgmma in flight");
    return;
  }
}

}  // namespace fp8gemm::sim
