// SPDX-License-Identifier: Apache-2.0
// What g++'s -fsanitize-coverage=trace-pc calls, as counters that libFuzzer reads: it knows clang.

#include <cstddef>
#include <cstdint>

namespace {

constexpr size_t kNumCounters = 1 << 18;
uint8_t counters[kNumCounters];
uintptr_t places[2 * kNumCounters];  // libFuzzer's pairs of a program counter and of flags

}  // namespace

extern "C" {

uint8_t* CountersBegin() { return counters; }
uint8_t* CountersEnd() { return counters + kNumCounters; }

uintptr_t* PlacesBegin() {
  for (size_t i = 0; i < kNumCounters; ++i) places[2 * i] = i + 1;
  return places;
}
uintptr_t* PlacesEnd() { return places + 2 * kNumCounters; }

void __sanitizer_cov_trace_pc() {
  // Code of one library lies close together, so that low bits tell its places apart.
  const auto place = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  ++counters[place % kNumCounters];
}

}  // extern "C"
