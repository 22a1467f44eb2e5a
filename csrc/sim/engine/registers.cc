// SPDX-License-Identifier: Apache-2.0
// setmaxnreg as a budget: the registers of a launch are a pool of the CTA.
#include <sim/device/entry_points.h>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {
namespace {

// The four warps of a warpgroup must execute the same sequence.
void CheckSameInWarpgroup(const Warp& warp, uint32_t registers) {
  auto& changes = warp.warpgroup->register_changes;
  std::vector<uint32_t>& own = changes[warp.index % kWarpgroupWarps];
  own.push_back(registers);
  const size_t position = own.size() - 1;
  for (const std::vector<uint32_t>& other : changes) {
    if (other.size() > position && other[position] != registers) {
      Hazard("setmaxnreg %u, but another warp of the warpgroup executed setmaxnreg %u", registers,
             other[position]);
      return;
    }
  }
}

}  // namespace

void SetMaxRegisters(bool increase, uint32_t registers) {
  const Op op = increase ? Op::kSetMaxRegistersInc : Op::kSetMaxRegistersDec;
  if (!MeetLanes(op, registers)) return;
  Warp& warp = *current->warp;
  Cta& cta = *warp.cta;
  CheckSameInWarpgroup(warp, registers);
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

}  // namespace fp8gemm::sim
