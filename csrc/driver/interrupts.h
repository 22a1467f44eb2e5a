// SPDX-License-Identifier: Apache-2.0
// Ctrl-C during what takes long, a compilation or a simulated launch, on whatever thread it runs.
//
// Python only notes the signal until its main thread runs bytecode again, and that thread may wait
// in XLA for just this work. So the work looks for the signal itself, stops and fails, and Python
// raises KeyboardInterrupt as soon as XLA returns. docs/architecture.md has the rule.
#pragma once
#include <cstdint>
#include <functional>

namespace fp8gemm {

/// Whether an interrupt is to stop what runs. Asked once per interrupt, on a thread that works;
/// without a rule nothing is stopped.
void SetInterruptRule(std::function<bool()> rule);

/// A mark of now for `WasInterrupted`. Watches SIGINT from here on if the process has a handler for
/// it, which is still called.
uint64_t WatchInterrupts();

/// Whether what began at `mark` is to stop. Costs little, so that loops can ask.
bool WasInterrupted(uint64_t mark);

/// Stops what runs now, as an interrupt does.
void InterruptAll();

}  // namespace fp8gemm
