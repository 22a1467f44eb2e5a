// SPDX-License-Identifier: Apache-2.0
// Hazards: what a launch did that hardware would not forgive, in words.
#pragma once
#include <cstdint>
#include <string>

namespace fp8gemm::sim {

struct Cta;

/// Adds a line naming the current thread. The launch goes on, to find more, and fails at its end.
[[gnu::format(printf, 1, 2)]] void Hazard(const char* format, ...);

/// As `Hazard`, for what cannot be continued: stops the launch. Only from a simulated thread.
[[noreturn, gnu::format(printf, 1, 2)]] void Fatal(const char* format, ...);

/// Adds a line as it is.
void AppendReport(const std::string& line);

/// A shared-memory address with the name of what lies there, e.g. "0x4840 (a[1])".
std::string SmemName(uint32_t address);

/// "0-3,8" for {0, 1, 2, 3, 8}: the set bits of `bits`.
std::string BitRanges(uint64_t bits);

void ClearReport();
const std::string& Report();
bool HasHazards();
bool IsAborted();
void Abort();

}  // namespace fp8gemm::sim
