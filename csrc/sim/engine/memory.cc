// SPDX-License-Identifier: Apache-2.0
// Loads and stores of the generic proxy, and stmatrix.
#include <sim/device/entry_points.h>

#include <cstring>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {
namespace {

template <typename T>
T LoadShared(uint32_t address, const char* what) {
  const uint32_t offset = SmemOffset(address, sizeof(T), sizeof(T), what);
  TraceSharedAccess(address, sizeof(T));
  current->cta->shadow.GenericRead(*current, offset, sizeof(T));
  T value;
  std::memcpy(&value, current->cta->smem + offset, sizeof(T));
  return value;
}

template <typename T>
void StoreShared(uint32_t address, const T& value, const char* what) {
  const uint32_t offset = SmemOffset(address, sizeof(T), sizeof(T), what);
  TraceSharedAccess(address, sizeof(T));
  current->cta->shadow.GenericWrite(*current, offset, sizeof(T));
  std::memcpy(current->cta->smem + offset, &value, sizeof(T));
}

struct FloatPair {
  float x;
  float y;
};

struct UintPair {
  uint32_t x;
  uint32_t y;
};

struct alignas(16) Chunk {
  uint8_t bytes[16];
};

struct alignas(16) FloatQuad {
  float values[4];
};

struct alignas(16) UintQuad {
  uint32_t values[4];
};

void CheckGlobalAlignment(const void* address, uint32_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    Fatal("%s at %p: not aligned to %u bytes", what, address, bytes);
  }
}

}  // namespace

uint32_t SmemOffset(uint32_t address, uint32_t bytes, uint32_t alignment, const char* what) {
  const uint32_t offset = address - kSmemBase;
  if (address < kSmemBase || offset > world.smem_bytes || bytes > world.smem_bytes - offset) {
    Fatal("%s at %#x, %u bytes: outside the %u bytes of dynamic shared memory, which start at %#x",
          what, address, bytes, world.smem_bytes, kSmemBase);
  }
  if (address % alignment != 0) {
    Fatal("%s at %s: not aligned to %u bytes", what, SmemName(address).c_str(), alignment);
  }
  return offset;
}

void CheckGlobal(const void* start, uint64_t bytes, const char* what) {
  const bool waited = world.checks_order() ? current->warp->clock.time[world.grid_slot] != 0
                                           : world.grid_dependency_waited;
  if (world.is_dependent_launch && !waited) {
    Hazard("%s of global memory not ordered after griddepcontrol.wait in a dependent launch", what);
  }
  if (world.ranges.empty()) return;
  const uintptr_t first = reinterpret_cast<uintptr_t>(start);
  for (const SimRange& range : world.ranges) {
    const uintptr_t range_first = reinterpret_cast<uintptr_t>(range.start);
    if (first >= range_first && first - range_first <= range.size_bytes &&
        bytes <= range.size_bytes - (first - range_first)) {
      return;
    }
  }
  Fatal("%s of %llu bytes of global memory at %p: in no registered range", what,
        static_cast<unsigned long long>(bytes), start);
}

float LoadSharedF32(uint32_t address) { return LoadShared<float>(address, "ld.shared.f32"); }

uint32_t LoadSharedU32(uint32_t address) { return LoadShared<uint32_t>(address, "ld.shared.u32"); }

void LoadSharedV2F32(uint32_t address, float& x, float& y) {
  const FloatPair pair = LoadShared<FloatPair>(address, "ld.shared.v2.f32");
  x = pair.x;
  y = pair.y;
}

void LoadSharedV4F32(uint32_t address, float (&values)[4]) {
  const FloatQuad quad = LoadShared<FloatQuad>(address, "ld.shared.v4.f32");
  std::memcpy(values, quad.values, sizeof quad);
}

void StoreSharedF32(uint32_t address, float value) { StoreShared(address, value, "st.shared.f32"); }

void StoreSharedV2F32(uint32_t address, float x, float y) {
  StoreShared(address, FloatPair{x, y}, "st.shared.v2.f32");
}

void LoadSharedV2U32(uint32_t address, uint32_t& x, uint32_t& y) {
  const UintPair pair = LoadShared<UintPair>(address, "ld.shared.v2.u32");
  x = pair.x;
  y = pair.y;
}

void StoreSharedU32(uint32_t address, uint32_t value) {
  StoreShared(address, value, "st.shared.u32");
}

void StoreSharedV4U32(uint32_t address, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  StoreShared(address, UintQuad{{x, y, z, w}}, "st.shared.v4.u32");
}

void StoreSharedV2U32(uint32_t address, uint32_t x, uint32_t y) {
  StoreShared(address, UintPair{x, y}, "st.shared.v2.u32");
}

void CopySharedToGlobal16(void* dst, uint32_t src) {
  const Chunk chunk = LoadShared<Chunk>(src, "ld.shared.v4.b32");
  CheckGlobal(dst, sizeof chunk, "st.global");
  CheckGlobalAlignment(dst, sizeof chunk, "st.global.v4.b32");
  NoteWritten(dst, sizeof chunk, "st.global");
  std::memcpy(dst, &chunk, sizeof chunk);
}

void LoadGlobal(void* to, const void* address, uint32_t bytes) {
  CheckGlobal(address, bytes, "ld.global");
  CheckGlobalAlignment(address, bytes, "ld.global");
  std::memcpy(to, address, bytes);
}

void LoadGlobalReadOnly(void* to, const void* address, uint32_t bytes) {
  LoadGlobal(to, address, bytes);
  NoteReadOnly(address, bytes);
}

void StoreGlobal(void* address, const void* from, uint32_t bytes) {
  CheckGlobal(address, bytes, "st.global");
  CheckGlobalAlignment(address, bytes, "st.global");
  NoteWritten(address, bytes, "st.global");
  std::memcpy(address, from, bytes);
}

// Lane 8 i + r brings the address of row r of matrix i; elements 2 c and 2 c + 1 of the row are in
// register i of lane 4 r + c.
void StoreMatrixX4(uint32_t address, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  constexpr uint32_t kRowBytes = 16;
  Warp& warp = *current->warp;
  const uint32_t offset = SmemOffset(address, kRowBytes, kRowBytes, "stmatrix");
  warp.matrix_address[current->lane()] = address;
  warp.matrix_rows[current->lane()] = {m0, m1, m2, m3};
  current->cta->shadow.GenericWrite(*current, offset, kRowBytes);
  if (!MeetLanes(Op::kStoreMatrix)) return;
  CountMatrixConflicts(warp.matrix_address);
  for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
    uint8_t* const row = warp.cta->smem + (warp.matrix_address[lane] - kSmemBase);
    for (uint32_t c = 0; c < 4; ++c) {
      std::memcpy(row + 4 * c, &warp.matrix_rows[lane % 8 * 4 + c][lane / 8], 4);
    }
  }
  ReleaseLanes(warp);
}

}  // namespace fp8gemm::sim
