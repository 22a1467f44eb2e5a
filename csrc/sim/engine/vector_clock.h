// SPDX-License-Identifier: Apache-2.0
// Vector clocks: what of the others' history a warp knows to be over.
//
// Slots, in this order: one per warp (its own time), one per warpgroup (wgmma groups retired), one
// per warp (its TMA stores that have read shared memory), one for griddepcontrol.wait, and one per
// mbarrier (phases completed, which is when the TMA loads that signal it have landed).
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

namespace fp8gemm::sim {

inline constexpr uint32_t kMaxClockSlots = 320;
inline constexpr uint32_t kMaxBarriers = 160;

struct VectorClock {
  uint32_t time[kMaxClockSlots] = {};

  void Join(const VectorClock& other, uint32_t num_slots) {
    for (uint32_t i = 0; i < num_slots; ++i) time[i] = std::max(time[i], other.time[i]);
  }
  void Raise(uint32_t slot, uint32_t value) { time[slot] = std::max(time[slot], value); }
  void Clear(uint32_t num_slots) { std::memset(time, 0, num_slots * sizeof(uint32_t)); }
};

}  // namespace fp8gemm::sim
