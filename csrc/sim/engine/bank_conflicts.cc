// SPDX-License-Identifier: Apache-2.0
// Counts the extra wavefronts that shared-memory accesses of a warp cost.
//
// Lanes are simulated one by one, so the accesses of a warp are put together by position: the i-th
// of each lane since the lanes last met is taken to be the same instruction.
#include <algorithm>
#include <array>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {
namespace {

constexpr uint32_t kBanks = 32;
constexpr uint32_t kBankBytes = 4;
constexpr uint32_t kMaxTraced = 512;

// Wavefronts of one pass over up to 32 words: the most distinct words in any bank.
uint32_t CountWavefronts(const uint32_t* words, uint32_t num_words) {
  std::array<uint32_t, kBanks> per_bank = {};
  uint32_t most = 0;
  for (uint32_t i = 0; i < num_words; ++i) {
    bool is_repeat = false;
    for (uint32_t j = 0; j < i && !is_repeat; ++j) is_repeat = words[j] == words[i];
    if (!is_repeat) most = std::max(most, ++per_bank[words[i] % kBanks]);
  }
  return most;
}

// Accesses of 4 bytes take one pass over 32 lanes, of 8 bytes two over 16 lanes each.
uint32_t CountExtraWavefronts(const BankTrace::Access& access) {
  const uint32_t words_per_lane = access.bytes / kBankBytes;
  const uint32_t lanes_per_pass = kWarpLanes / words_per_lane;
  uint32_t extra = 0;
  for (uint32_t first = 0; first < kWarpLanes; first += lanes_per_pass) {
    std::array<uint32_t, kBanks> words;
    uint32_t num_words = 0;
    for (uint32_t lane = first; lane < first + lanes_per_pass; ++lane) {
      if ((access.lanes >> lane & 1) == 0) continue;
      for (uint32_t w = 0; w < words_per_lane; ++w) {
        words[num_words++] = access.address[lane] / kBankBytes + w;
      }
    }
    if (num_words != 0) extra += CountWavefronts(words.data(), num_words) - 1;
  }
  return extra;
}

}  // namespace

void TraceSharedAccess(uint32_t address, uint32_t bytes) {
  const uint32_t position = current->num_accesses++;
  if (position >= kMaxTraced) return;
  BankTrace& trace = current->warp->bank_trace;
  if (position >= trace.accesses.size()) trace.accesses.resize(position + 1);
  trace.used = std::max(trace.used, position + 1);
  BankTrace::Access& access = trace.accesses[position];
  if (access.lanes != 0 && access.bytes != bytes) return;  // not the same instruction
  access.lanes |= 1u << current->lane();
  access.bytes = bytes;
  access.address[current->lane()] = address;
}

void FlushBankTrace(Warp& warp) {
  BankTrace& trace = warp.bank_trace;
  if (trace.used == 0) return;
  for (uint32_t i = 0; i < trace.used; ++i) {
    world.stats.bank_conflicts += CountExtraWavefronts(trace.accesses[i]);
    trace.accesses[i].lanes = 0;
  }
  trace.used = 0;
  for (uint32_t lane = 0; lane < kWarpLanes; ++lane) warp.lanes[lane].num_accesses = 0;
}

// Each matrix is one pass over eight rows of four words.
void CountMatrixConflicts(const std::array<uint32_t, kWarpLanes>& addresses) {
  for (uint32_t first = 0; first < kWarpLanes; first += 8) {
    std::array<uint32_t, kBanks> words;
    for (uint32_t i = 0; i < kBanks; ++i) {
      words[i] = addresses[first + i / 4] / kBankBytes + i % 4;
    }
    world.stats.bank_conflicts += CountWavefronts(words.data(), kBanks) - 1;
  }
}

}  // namespace fp8gemm::sim
