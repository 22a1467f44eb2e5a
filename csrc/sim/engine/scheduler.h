// SPDX-License-Identifier: Apache-2.0
// Who runs next, and when asynchronous operations take effect.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "sim/engine/world.h"

namespace fp8gemm::sim {

// A TMA copy on its way.
struct TmaCopy {
  const SimTensorMap* map;
  int32_t x;
  int32_t y;
  uint64_t inner_bytes;          // of the tensor: what lies past them is zero, or not written
  uint32_t address;              // in shared memory
  uint32_t bar;                  // loads: mbarrier
  uint32_t cta_mask;             // loads: destinations
  Cta* cta;                      // issuer's
  Thread* thread;                // stores: issuer
  uint32_t group;                // stores: its bulk group
  std::vector<uint32_t> chunks;  // smem offsets of the 16-byte chunks, row by row
};

// A store into a CTA of the cluster.
struct AsyncStore {
  Cta* cta = nullptr;
  uint32_t bar = 0;     // mbarrier there
  uint32_t offset = 0;  // in shared memory
  std::array<float, 4> values = {};
};

struct AsyncOp {
  enum class Kind : uint8_t { kLoad, kStore, kAsyncStore, kWgmma };

  Kind kind;
  uint64_t due = 0;                // scheduler tick
  Warpgroup* warpgroup = nullptr;  // kWgmma
  uint32_t group = 0;              // kWgmma: runs all committed groups up to this one
  AsyncStore store;                // kAsyncStore
  std::unique_ptr<TmaCopy> copy;   // kLoad, kStore
};

/// Runs one cluster whose threads are prepared; false if it ended in a deadlock or was aborted.
bool RunCluster();

/// Hands over an asynchronous operation; it takes effect now or later, as the options say.
void Issue(AsyncOp op);

/// Stops the current thread until somebody wakes it.
void Block(Op op, uint32_t address = 0, uint32_t value = 0);
/// Lets a blocked thread run again.
void Wake(Thread* thread);
void WakeAll(std::vector<Thread*>& threads);
/// Leaves the current thread for good.
[[noreturn]] void LeaveThread();

/// Seeds the choices of a launch; `Random` draws from them.
void SeedRandom(uint64_t seed);
uint64_t Random();

// The effects of asynchronous operations.
void FinishTmaLoad(const TmaCopy& copy);
void FinishTmaStore(const TmaCopy& copy);
void FinishAsyncStore(const AsyncStore& store);
void FinishWgmma(Warpgroup& warpgroup, uint32_t last_group);

}  // namespace fp8gemm::sim
