// SPDX-License-Identifier: Apache-2.0
// How the simulator runs kernels, and what it counts. Plain C types: Python sets them with ctypes.
#pragma once
#include <cstdint>

namespace fp8gemm::sim {

// When an asynchronous operation (TMA load, TMA store, committed wgmma group) takes effect.
enum Timing : int32_t {
  kTimingEarly = 0,   // as soon as it is issued
  kTimingLate = 1,    // only when no thread can run; the seed picks a class that comes last of all
  kTimingRandom = 2,  // each operation early, late or after a random delay
};

// Which of the runnable threads runs next.
enum SchedulerMode : int32_t {
  kSchedulerLifo = 0,
  kSchedulerRandom = 1,
  kSchedulerStarveWarp = 2,  // random, but one warp runs only when no other can
};

enum Numerics : int32_t {
  kNumericsExact = 0,   // products added to the accumulator one by one in f32
  kNumericsHopper = 1,  // aligned to the largest exponent and truncated to 13 fraction bits
};

enum ShadowMode : int32_t {
  kShadowOff = 0,
  kShadowInterval = 1,       // accesses that overlap an operation in flight; missing proxy fences
  kShadowHappensBefore = 2,  // and accesses no synchronization orders, whatever the schedule
};

struct SimOptions {
  uint64_t seed = 1;
  int32_t timing = kTimingRandom;
  int32_t scheduler = kSchedulerRandom;
  int32_t numerics = kNumericsExact;
  int32_t shadow = kShadowHappensBefore;
  int32_t num_sms = 4;  // few, so that CTAs are persistent for small problems too
};

// Totals since the last reset.
struct SimStats {
  uint64_t launches;
  uint64_t switches;        // from the scheduler to a thread
  uint64_t wgmma;           // instructions of a whole warpgroup
  uint64_t loads;           // TMA load instructions
  uint64_t stores;          // TMA store instructions
  uint64_t bytes_loaded;    // whole boxes, once per destination CTA
  uint64_t bytes_stored;    // inside the tensor
  uint64_t bank_conflicts;  // extra wavefronts of ld.shared, st.shared and stmatrix
};

// Global memory that kernels may touch.
struct SimRange {
  const void* start;
  uint64_t size_bytes;
};

}  // namespace fp8gemm::sim

#define FP8GEMM_SIM_EXPORT __attribute__((visibility("default")))

extern "C" {

// Takes effect at the next launch. `num_sms` must be set before the device is first queried.
FP8GEMM_SIM_EXPORT void Fp8GemmSimSetOptions(const fp8gemm::sim::SimOptions* options);
FP8GEMM_SIM_EXPORT void Fp8GemmSimGetOptions(fp8gemm::sim::SimOptions* options);
FP8GEMM_SIM_EXPORT void Fp8GemmSimGetStats(fp8gemm::sim::SimStats* stats);
FP8GEMM_SIM_EXPORT void Fp8GemmSimResetStats();

// Accesses to global memory outside every range become hazards; no ranges means no check.
FP8GEMM_SIM_EXPORT void Fp8GemmSimSetGlobalRanges(const fp8gemm::sim::SimRange* ranges,
                                                  uint64_t num_ranges);
}
