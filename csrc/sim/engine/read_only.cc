// SPDX-License-Identifier: Apache-2.0
// ld.global.nc: what it reads must not be written by anybody while the kernel runs, since nothing
// keeps the cache that it goes through coherent. PTX ISA: "ld.global.nc".
#include <algorithm>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {
namespace {

constexpr uintptr_t kChunkBytes = 16;

// Calls `visit(use, mask)` for each chunk that an access touches, with a bit per byte.
template <typename Visitor>
void VisitChunks(const void* start, uint32_t bytes, const Visitor& visit) {
  uintptr_t at = reinterpret_cast<uintptr_t>(start);
  const uintptr_t end = at + bytes;
  while (at < end) {
    const uintptr_t chunk_end = std::min(end, (at / kChunkBytes + 1) * kChunkBytes);
    const uint32_t mask = ((1u << (chunk_end - at)) - 1) << at % kChunkBytes;
    visit(world.global_use[at / kChunkBytes], static_cast<uint16_t>(mask));
    at = chunk_end;
  }
}

}  // namespace

void NoteReadOnly(const void* start, uint32_t bytes) {
  if (!world.checks_intervals()) return;
  bool is_written = false;
  VisitChunks(start, bytes, [&](GlobalUse& use, uint16_t mask) {
    use.read_only |= mask;
    is_written |= (use.written & mask) != 0;
  });
  if (is_written) Hazard("ld.global.nc at %p, which this launch writes", start);
}

void NoteWritten(const void* start, uint32_t bytes, const char* what) {
  if (!world.checks_intervals()) return;
  bool is_read = false;
  VisitChunks(start, bytes, [&](GlobalUse& use, uint16_t mask) {
    use.written |= mask;
    is_read |= (use.read_only & mask) != 0;
  });
  if (is_read) Hazard("%s at %p, which this launch reads by ld.global.nc", what, start);
}

}  // namespace fp8gemm::sim
