// SPDX-License-Identifier: Apache-2.0
// setmaxnreg as a budget: the registers of a launch are a pool of the CTA.
#include <sim/device/entry_points.h>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {
namespace {

// The four warps of a warpgroup must execute the same sequence.
void CheckSameInWarpgroup(const Warp& warp, size_t position, uint32_t registers) {
  for (const std::vector<RegisterChange>& other : warp.warpgroup->register_changes) {
    if (other.size() > position && other[position].registers != registers) {
      Hazard("setmaxnreg %u, but another warp of the warpgroup executed setmaxnreg %u", registers,
             other[position].registers);
      return;
    }
  }
}

// Between two of them the warps of a warpgroup must synchronize.
void CheckSynchronized(const Warp& warp, size_t position) {
  if (!world.checks_order() || position == 0) return;
  const uint32_t first_warp = warp.number - warp.index % kWarpgroupWarps;
  for (uint32_t i = 0; i < kWarpgroupWarps; ++i) {
    const std::vector<RegisterChange>& other = warp.warpgroup->register_changes[i];
    if (other.size() >= position && IsOrdered(warp, first_warp + i, other[position - 1].clock)) {
      continue;
    }
    Hazard("setmaxnreg again, but not ordered after the last one by warp %u of the warpgroup", i);
    return;
  }
}

}  // namespace

void SetMaxRegisters(bool increase, uint32_t registers) {
  const Op op = increase ? Op::kSetMaxRegistersInc : Op::kSetMaxRegistersDec;
  if (!MeetLanes(op, registers)) return;
  Warp& warp = *current->warp;
  Cta& cta = *warp.cta;
  std::vector<RegisterChange>& changes =
      warp.warpgroup->register_changes[warp.index % kWarpgroupWarps];
  CheckSynchronized(warp, changes.size());
  CheckSameInWarpgroup(warp, changes.size(), registers);
  changes.push_back({registers, warp.clock.time[warp.number]});
  if (increase ? registers < warp.registers : registers > warp.registers) {
    Hazard("%s %u, but the warp has %u registers per thread", OpName(op), registers,
           warp.registers);
  }
  while (registers > warp.registers &&
         cta.free_registers < (registers - warp.registers) * kWarpLanes) {
    cta.register_waiters.push_back(current);
    HoldLanes(op, registers);
  }
  cta.free_registers += (warp.registers - registers) * kWarpLanes;
  warp.registers = registers;
  WakeAll(cta.register_waiters);
  ReleaseLanes(warp);
}

void CheckRegistersAtExit(const Cta& cta) {
  for (const Warpgroup& warpgroup : cta.warpgroups) {
    const size_t expected = warpgroup.register_changes[0].size();
    for (uint32_t i = 1; i < kWarpgroupWarps; ++i) {
      if (warpgroup.register_changes[i].size() == expected) continue;
      Hazard("CTA exits, and in warpgroup %u warp 0 has executed setmaxnreg %zu times, warp %u %zu",
             warpgroup.index, expected, i, warpgroup.register_changes[i].size());
      return;
    }
  }
}

}  // namespace fp8gemm::sim
