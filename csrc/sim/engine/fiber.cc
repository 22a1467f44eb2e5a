// SPDX-License-Identifier: Apache-2.0
// Context switch and stack memory of fibers.
#include "sim/engine/fiber.h"

#include <sys/mman.h>

namespace fp8gemm::sim {

#if !defined(FP8GEMM_SIM_UCONTEXT)

// Saves what the System V ABI lets a callee expect to survive, and nothing else.
extern "C" void fp8gemm_sim_switch(void** save, void* to);
asm(R"(
.text
.hidden fp8gemm_sim_switch
.globl fp8gemm_sim_switch
.type fp8gemm_sim_switch,@function
fp8gemm_sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fp8gemm_sim_switch,.-fp8gemm_sim_switch
)");

void PrepareFiber(Fiber& fiber, uint8_t* stack, size_t stack_bytes, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  void** top = reinterpret_cast<void**>(stack + stack_bytes);
  *--top = nullptr;  // the return address of `entry`; also aligns the stack as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  fiber.stack_pointer = static_cast<void*>(top);
  fiber.notes.Prepare(stack, stack_bytes);
}

void SwitchFiber(Fiber& from, Fiber& to) {
  from.notes.Leave(to.notes);
  fp8gemm_sim_switch(&from.stack_pointer, to.stack_pointer);
  FiberNotes::Arrive(&from.notes);
}

#else

void PrepareFiber(Fiber& fiber, uint8_t* stack, size_t stack_bytes, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
  fiber.notes.Prepare(stack, stack_bytes);
}

void SwitchFiber(Fiber& from, Fiber& to) {
  from.notes.Leave(to.notes);
  swapcontext(&from.context, &to.context);
  FiberNotes::Arrive(&from.notes);
}

#endif

void BeginFiber() { FiberNotes::Arrive(nullptr); }

namespace {

constexpr size_t kGuardBytes = 64 * 1024;  // a multiple of every page size in use
constexpr size_t kPitchBytes = FiberStacks::kStackBytes + kGuardBytes;

}  // namespace

bool FiberStacks::Reserve(size_t count) {
  if (count <= count_) return true;
  if (memory_ != nullptr) munmap(memory_, count_ * kPitchBytes);
  memory_ = nullptr;
  count_ = 0;
  void* memory = mmap(nullptr, count * kPitchBytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  memory_ = static_cast<uint8_t*>(memory);
  count_ = count;
  for (size_t i = 0; i < count; ++i) {
    if (mprotect(stack(i), kStackBytes, PROT_READ | PROT_WRITE) != 0) return false;
  }
  return true;
}

uint8_t* FiberStacks::stack(size_t index) const {
  return memory_ + index * kPitchBytes + kGuardBytes;
}

}  // namespace fp8gemm::sim
