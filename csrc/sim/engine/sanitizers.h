// SPDX-License-Identifier: Apache-2.0
// What AddressSanitizer and ThreadSanitizer must be told of fibers; nothing in other builds.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>

#include <unordered_map>
#endif

namespace fp8gemm::sim {

/// What a sanitizer knows of one fiber.
class FiberNotes {
 public:
  /// The fiber gets a stack, which may hold frames that were never left.
  void Prepare(uint8_t* stack, size_t stack_bytes);

  /// Just before a switch from this fiber to `to`.
  void Leave(FiberNotes& to);

  /// First thing on the stack that was switched to, with the notes of that fiber if it had left.
  static void Arrive(FiberNotes* self);

#if defined(__SANITIZE_ADDRESS__)
 private:
  inline static FiberNotes* previous_ = nullptr;
  const void* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;
#elif defined(__SANITIZE_THREAD__)
 private:
  void* fiber_ = nullptr;
#endif
};

#if defined(__SANITIZE_ADDRESS__)

inline void FiberNotes::Prepare(uint8_t* stack, size_t stack_bytes) {
  __asan_unpoison_memory_region(stack, stack_bytes);
  stack_ = stack;
  stack_bytes_ = stack_bytes;
}

inline void FiberNotes::Leave(FiberNotes& to) {
  previous_ = this;
  __sanitizer_start_switch_fiber(&fake_stack_, to.stack_, to.stack_bytes_);
}

// The stack of the scheduler, which is that of whoever launches, becomes known in this way.
inline void FiberNotes::Arrive(FiberNotes* self) {
  __sanitizer_finish_switch_fiber(self != nullptr ? self->fake_stack_ : nullptr, &previous_->stack_,
                                  &previous_->stack_bytes_);
}

#elif defined(__SANITIZE_THREAD__)

inline void FiberNotes::Prepare(uint8_t* stack, size_t) {
  static auto& fibers = *new std::unordered_map<uint8_t*, void*>;  // those that were on a stack
  void*& fiber = fibers[stack];
  if (fiber != nullptr) __tsan_destroy_fiber(fiber);
  fiber = fiber_ = __tsan_create_fiber(0);
}

inline void FiberNotes::Leave(FiberNotes& to) {
  fiber_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(to.fiber_, 0);
}

inline void FiberNotes::Arrive(FiberNotes*) {}

#else

inline void FiberNotes::Prepare(uint8_t*, size_t) {}
inline void FiberNotes::Leave(FiberNotes&) {}
inline void FiberNotes::Arrive(FiberNotes*) {}

#endif

}  // namespace fp8gemm::sim
