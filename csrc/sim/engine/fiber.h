// SPDX-License-Identifier: Apache-2.0
// Fibers: stacks that take turns on one operating-system thread.
//
// x86-64 switches in a dozen instructions; other CPUs, or a build with FP8GEMM_SIM_UCONTEXT, use
// ucontext, whose system call per switch makes the simulator several times slower and changes
// nothing else.
#pragma once
#include <cstddef>
#include <cstdint>

#include "sim/engine/sanitizers.h"

#if !defined(__x86_64__) && !defined(FP8GEMM_SIM_UCONTEXT)
#define FP8GEMM_SIM_UCONTEXT
#endif
#if defined(FP8GEMM_SIM_UCONTEXT)
#include <ucontext.h>
#endif

namespace fp8gemm::sim {

struct Fiber {
#if defined(FP8GEMM_SIM_UCONTEXT)
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  [[no_unique_address]] FiberNotes notes;
};

/// Makes `fiber` start `entry`, which must never return and calls `BeginFiber` first, on the given
/// stack.
void PrepareFiber(Fiber& fiber, uint8_t* stack, size_t stack_bytes, void (*entry)());

void BeginFiber();

/// Saves the running context in `from` and continues `to`.
void SwitchFiber(Fiber& from, Fiber& to);

/// Stacks of equal size with an unmapped page below each, kept for the life of the process.
class FiberStacks {
 public:
  static constexpr size_t kStackBytes = 64 * 1024;

  /// Provides at least `count` stacks; false if memory ran out.
  bool Reserve(size_t count);
  uint8_t* stack(size_t index) const;

 private:
  uint8_t* memory_ = nullptr;
  size_t count_ = 0;
};

}  // namespace fp8gemm::sim
