// SPDX-License-Identifier: Apache-2.0
// Checks of shared-memory accesses against what is in flight and against happens-before.
#include "sim/engine/shadow.h"

#include <algorithm>
#include <cstdio>
#include <string>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {
namespace {

// What a clock slot stands for, in a report.
std::string SlotName(uint32_t slot) {
  const uint32_t warps_per_cta = static_cast<uint32_t>(world.ctas[0].warps.size());
  const uint32_t num_warpgroups = world.num_warps / kWarpgroupWarps;
  const auto place = [](uint32_t index, uint32_t per_cta) {
    return std::to_string(index % per_cta) + " of cta " + std::to_string(index / per_cta);
  };
  if (slot < world.num_warps) return "warp " + place(slot, warps_per_cta);
  slot -= world.num_warps;
  if (slot < num_warpgroups) {
    return "wgmma of warpgroup " + place(slot, warps_per_cta / kWarpgroupWarps);
  }
  slot -= num_warpgroups;
  if (slot < world.num_warps) return "TMA store of warp " + place(slot, warps_per_cta);
  return "TMA load or st.async";
}

bool ReportRace(const char* what, uint32_t offset, const char* other, uint32_t slot) {
  Hazard("race: %s at %s is not ordered after the %s by %s", what,
         SmemName(offset + kSmemBase).c_str(), other, SlotName(slot).c_str());
  return false;
}

bool ReportInFlight(const char* what, uint32_t offset, const char* other) {
  Hazard("%s at %s while %s is in flight", what, SmemName(offset + kSmemBase).c_str(), other);
  return false;
}

// Data that TMA brought is known lane by lane; see order.cc.
bool LaneHasSeen(const Thread& thread, uint32_t slot, uint32_t clock) {
  if (slot < world.first_barrier_slot) return IsOrdered(*thread.warp, slot, clock);
  const uint32_t barrier = slot - world.first_barrier_slot;
  return std::max(thread.seen_phase[barrier], thread.warp->seen_phase[barrier]) >= clock;
}

}  // namespace

void Shadow::Reset(uint32_t bytes) {
  const uint32_t num_chunks = (bytes + kChunkBytes - 1) / kChunkBytes;
  chunks_.assign(num_chunks, Chunk{});
  if (words_.size() < num_chunks * kWordsPerChunk) words_.resize(num_chunks * kWordsPerChunk);
  overflow_.clear();
}

Shadow::Word* Shadow::Words(uint32_t chunk) {
  Word* const words = &words_[chunk * kWordsPerChunk];
  if (!chunks_[chunk].has_words) {
    std::fill_n(words, kWordsPerChunk, Word{});
    chunks_[chunk].has_words = true;
  }
  return words;
}

// ---- Generic proxy ------------------------------------------------------------------------------

bool Shadow::CheckGenericChunk(const Thread& thread, const Chunk& chunk, uint32_t offset,
                               bool is_write) {
  const char* const what = is_write ? "st.shared" : "ld.shared";
  if (chunk.writers != 0) return ReportInFlight(what, offset, "a TMA load or st.async into it");
  if (is_write && chunk.readers != 0) {
    return ReportInFlight(what, offset, "an asynchronous reader of it (wgmma or TMA store)");
  }
  if (!world.checks_order()) return true;
  if (!LaneHasSeen(thread, chunk.write_slot, chunk.write_clock)) {
    return ReportRace(what, offset, "write", chunk.write_slot);
  }
  if (!is_write) return true;
  for (int i = 0; i < kMaxAsyncReaders; ++i) {
    if (!IsOrdered(*thread.warp, chunk.read_slot[i], chunk.read_clock[i])) {
      return ReportRace(what, offset, "read", chunk.read_slot[i]);
    }
  }
  return true;
}

bool Shadow::CheckWordRaces(const Warp& warp, const Word& word, uint32_t offset, bool is_write,
                            const char* what) {
  if (!world.checks_order()) return true;
  if (word.writer != 0) {
    const uint32_t writer = (word.writer - 1u) / kWarpLanes;
    if (!IsOrdered(warp, writer, word.write_clock)) {
      return ReportRace(what, offset, "st.shared", writer);
    }
  }
  if (!is_write) return true;
  for (int i = 0; i < kInlineReaders; ++i) {
    if (!IsOrdered(warp, word.read_warp[i], word.read_clock[i])) {
      return ReportRace(what, offset, "ld.shared", word.read_warp[i]);
    }
  }
  if (word.overflow == 0) return true;
  const uint32_t* const clocks = &overflow_[(word.overflow - 1u) * kMaxWarps];
  for (uint32_t reader = 0; reader < world.num_warps; ++reader) {
    if (!IsOrdered(warp, reader, clocks[reader])) {
      return ReportRace(what, offset, "ld.shared", reader);
    }
  }
  return true;
}

// Lanes of one warp that touch the same word, one of them writing, with nothing between.
bool Shadow::CheckLaneRaces(const Thread& thread, const Word& word, uint32_t offset,
                            bool is_write) {
  if (!world.checks_order()) return true;
  const Warp& warp = *thread.warp;
  const auto races = [&](uint32_t other, uint32_t epoch) {
    return other != 0 && other - 1 != thread.number && (other - 1) / kWarpLanes == warp.number &&
           epoch == warp.lane_epoch;
  };
  const bool with_write = races(word.writer, word.write_epoch);
  if (!with_write && !(is_write && races(word.reader, word.read_epoch))) return true;
  const uint32_t other = (with_write ? word.writer : word.reader) - 1u;
  Hazard("race: %s at %s is not ordered after the %s by lane %u of the same warp",
         is_write ? "st.shared" : "ld.shared", SmemName(offset + kSmemBase).c_str(),
         with_write ? "st.shared" : "ld.shared", other % kWarpLanes);
  return false;
}

void Shadow::RecordRead(Word& word, const Thread& thread) {
  const Warp& warp = *thread.warp;
  word.reader = static_cast<uint16_t>(thread.number + 1);
  word.read_epoch = warp.lane_epoch;
  const uint32_t clock = warp.clock.time[warp.number];
  for (int i = 0; i < kInlineReaders; ++i) {
    if (word.read_clock[i] != 0 && word.read_warp[i] != warp.number) continue;
    word.read_warp[i] = static_cast<uint16_t>(warp.number);
    word.read_clock[i] = clock;
    return;
  }
  if (word.overflow == 0) {
    overflow_.resize(overflow_.size() + kMaxWarps, 0);
    word.overflow = static_cast<uint16_t>(overflow_.size() / kMaxWarps);
  }
  overflow_[(word.overflow - 1u) * kMaxWarps + warp.number] = clock;
}

void Shadow::GenericRead(const Thread& thread, uint32_t offset, uint32_t bytes) {
  if (!world.checks_intervals()) return;
  for (uint32_t at = offset; at < offset + bytes; at += 4) {
    if (!CheckGenericChunk(thread, chunks_[at / kChunkBytes], at, false)) return;
    Word& word = Words(at / kChunkBytes)[at / 4 % kWordsPerChunk];
    if (word.holds_barrier) {
      Hazard("ld.shared at %s reads an mbarrier", SmemName(at + kSmemBase).c_str());
      return;
    }
    if (!CheckWordRaces(*thread.warp, word, at, false, "ld.shared")) return;
    if (!CheckLaneRaces(thread, word, at, false)) return;
    if (world.checks_order()) RecordRead(word, thread);
  }
}

void Shadow::GenericWrite(Thread& thread, uint32_t offset, uint32_t bytes) {
  if (!world.checks_intervals()) return;
  const Warp& warp = *thread.warp;
  ++thread.num_writes;
  for (uint32_t at = offset; at < offset + bytes; at += 4) {
    if (!CheckGenericChunk(thread, chunks_[at / kChunkBytes], at, true)) return;
    Word& word = Words(at / kChunkBytes)[at / 4 % kWordsPerChunk];
    if (word.holds_barrier) {
      Hazard("st.shared at %s overwrites an mbarrier", SmemName(at + kSmemBase).c_str());
      return;
    }
    if (!CheckWordRaces(warp, word, at, true, "st.shared")) return;
    if (!CheckLaneRaces(thread, word, at, true)) return;
    word = Word{};  // earlier accesses are ordered before this one, so it stands for them
    word.write_clock = warp.clock.time[warp.number];
    word.write_number = thread.num_writes;
    word.writer = static_cast<uint16_t>(thread.number + 1);
    word.write_epoch = warp.lane_epoch;
  }
}

void Shadow::PlaceBarrier(Thread& thread, uint32_t offset) {
  if (!world.checks_intervals()) return;
  GenericWrite(thread, offset, 8);
  Word* const words = Words(offset / kChunkBytes) + offset / 4 % kWordsPerChunk;
  words[0].holds_barrier = words[1].holds_barrier = true;
}

// ---- Asynchronous proxy -------------------------------------------------------------------------

bool Shadow::CheckAsyncWords(const AsyncAccess& access, uint32_t index) {
  Word* const words = &words_[index * kWordsPerChunk];
  for (uint32_t i = 0; i < kWordsPerChunk; ++i) {
    Word& word = words[i];
    const uint32_t offset = index * kChunkBytes + i * 4;
    if (word.holds_barrier) {
      Hazard("%s at %s touches an mbarrier", access.what, SmemName(offset + kSmemBase).c_str());
      return false;
    }
    if (!CheckWordRaces(*current->warp, word, offset, access.is_write, access.what)) return false;
    if (word.write_number == 0) continue;
    const Thread& writer = world.threads[word.writer - 1u];
    if (word.write_number > writer.fenced_writes) {
      Hazard(
          "%s at %s, written by st.shared of warp %u lane %u of cta %u without a later "
          "fence.proxy.async by that thread",
          access.what, SmemName(offset + kSmemBase).c_str(), writer.warp->index, writer.lane(),
          writer.cta->rank);
      return false;
    }
    word.write_number = 0;
  }
  return true;
}

bool Shadow::CheckAsyncOrder(const AsyncAccess& access, const Chunk& chunk, uint32_t index) {
  const Warp& warp = *current->warp;
  const uint32_t offset = index * kChunkBytes;
  if (!IsOrdered(warp, chunk.write_slot, chunk.write_clock)) {
    return ReportRace(access.what, offset, "write", chunk.write_slot);
  }
  if (!access.is_write) return true;
  for (int i = 0; i < kMaxAsyncReaders; ++i) {
    if (!IsOrdered(warp, chunk.read_slot[i], chunk.read_clock[i])) {
      return ReportRace(access.what, offset, "read", chunk.read_slot[i]);
    }
  }
  return true;
}

bool Shadow::CheckAsyncChunk(const AsyncAccess& access, const Chunk& chunk, uint32_t index) {
  const uint32_t offset = index * kChunkBytes;
  if (chunk.writers != 0)
    return ReportInFlight(access.what, offset, "a TMA load or st.async into it");
  if (access.is_write && chunk.readers != 0) {
    return ReportInFlight(access.what, offset, "an asynchronous reader of it (wgmma or TMA store)");
  }
  if (world.checks_order() && !CheckAsyncOrder(access, chunk, index)) return false;
  return !chunk.has_words || CheckAsyncWords(access, index);
}

void Shadow::RecordAsync(const AsyncAccess& access, Chunk& chunk, uint32_t index) {
  if (!world.checks_order()) return;
  if (access.is_write) {
    // Earlier accesses are ordered before this one, so it stands for them.
    chunk.has_words = false;
    chunk.write_slot = static_cast<uint16_t>(access.slot);
    chunk.write_clock = access.clock;
    std::fill_n(chunk.read_clock, kMaxAsyncReaders, 0);
    return;
  }
  int place = static_cast<int>(index) % kMaxAsyncReaders;
  for (int i = 0; i < kMaxAsyncReaders; ++i) {
    if (chunk.read_clock[i] == 0 || chunk.read_slot[i] == access.slot) {
      place = i;
      break;
    }
  }
  chunk.read_slot[place] = static_cast<uint16_t>(access.slot);
  chunk.read_clock[place] = access.clock;
}

void Shadow::CheckAsync(const AsyncAccess& access, const uint32_t* chunks, uint32_t num_chunks) {
  if (!world.checks_intervals()) return;
  for (uint32_t i = 0; i < num_chunks; ++i) {
    const uint32_t index = chunks[i] / kChunkBytes;
    if (!CheckAsyncChunk(access, chunks_[index], index)) return;
    RecordAsync(access, chunks_[index], index);
  }
}

void Shadow::BeginAsync(const AsyncAccess& access, const uint32_t* chunks, uint32_t num_chunks) {
  if (!world.checks_intervals()) return;
  for (uint32_t i = 0; i < num_chunks; ++i) {
    Chunk& chunk = chunks_[chunks[i] / kChunkBytes];
    if (access.is_write) {
      ++chunk.writers;
    } else {
      ++chunk.readers;
    }
  }
}

void Shadow::EndAsync(bool is_write, const uint32_t* chunks, uint32_t num_chunks) {
  if (!world.checks_intervals()) return;
  for (uint32_t i = 0; i < num_chunks; ++i) {
    Chunk& chunk = chunks_[chunks[i] / kChunkBytes];
    if (is_write) {
      --chunk.writers;
    } else {
      --chunk.readers;
    }
  }
}

}  // namespace fp8gemm::sim
