// SPDX-License-Identifier: Apache-2.0
// TMA: box copies between global tensors and shared memory, and bulk groups of stores.
#include <sim/device/entry_points.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {
namespace {

constexpr uint32_t kChunkBytes = 16;
constexpr uint32_t kMaxRowBytes = 256 * 8;

const SimTensorMap& CheckTensorMap(const TensorMap* map, const char* what) {
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) {
    Fatal("%s: tensor map at %p is not aligned to 64 bytes", what, static_cast<const void*>(map));
  }
  const SimTensorMap& decoded = *reinterpret_cast<const SimTensorMap*>(map);
  if (decoded.magic != kTensorMapMagic) {
    Fatal("%s: the tensor map was not encoded by cuTensorMapEncodeTiled", what);
  }
  // A map that the kernel copied is in local memory, where TMA cannot read it.
  const uintptr_t offset =
      reinterpret_cast<uintptr_t>(map) - reinterpret_cast<uintptr_t>(world.params);
  if (offset >= world.kernel->params_bytes) {
    Fatal("%s: the tensor map at %p is not in the kernel's parameters", what,
          static_cast<const void*>(map));
  }
  return decoded;
}

// Swizzled tiles must start where the pattern does: it is a function of the absolute address.
uint32_t SmemAlignment(const SimTensorMap& map) {
  return map.swizzle_bytes == 0 ? 128 : map.swizzle_bytes * 8;
}

// Checks what loads and stores have in common, and lists the chunks of the box row by row.
std::unique_ptr<TmaCopy> MakeCopy(const TensorMap* map, uint32_t address, int32_t x, int32_t y,
                                  bool is_store, const char* what) {
  const SimTensorMap& decoded = CheckTensorMap(map, what);
  if (decoded.rank != 2) Fatal("%s.2d with a tensor map of rank %u", what, decoded.rank);
  if (int64_t{x} * decoded.elem_bytes % kChunkBytes != 0) {
    Fatal(
        "%s: the innermost coordinate must be a multiple of 16 bytes, or a GPU traps"
        " (illegal instruction); got %d elements of %u bytes",
        what, x, decoded.elem_bytes);
  }
  // Stores write whole chunks: the one in which a row of the tensor ends, up to its own end.
  uint64_t inner_bytes = decoded.dims[0] * decoded.elem_bytes;
  if (is_store) inner_bytes = align_up<uint64_t>(inner_bytes, kChunkBytes);
  CheckGlobal(decoded.base, (decoded.dims[1] - 1) * decoded.strides_bytes[0] + inner_bytes, what);
  const uint32_t row_bytes = decoded.box[0] * decoded.elem_bytes;
  const uint32_t box_bytes = row_bytes * decoded.box[1];
  SmemOffset(address, box_bytes, SmemAlignment(decoded), what);
  auto copy = std::make_unique<TmaCopy>();
  copy->map = &decoded;
  copy->x = x;
  copy->y = y;
  copy->inner_bytes = inner_bytes;
  copy->address = address;
  copy->cta = current->cta;
  copy->chunks.reserve(box_bytes / kChunkBytes);
  for (uint32_t at = address; at < address + box_bytes; at += kChunkBytes) {
    copy->chunks.push_back(SwizzleAddress(at, decoded.swizzle_bytes) - kSmemBase);
  }
  return copy;
}

// The part of a box row that lies inside the tensor.
struct RowSpan {
  uint8_t* gmem;
  uint32_t first_byte;  // within the box row
  uint32_t bytes;
};

RowSpan ClipRow(const TmaCopy& copy, uint32_t row) {
  const SimTensorMap& map = *copy.map;
  const int64_t y = int64_t{copy.y} + row;
  const int64_t x_byte = int64_t{copy.x} * map.elem_bytes;
  const int64_t first = std::max<int64_t>(0, -x_byte);
  const int64_t last = std::min<int64_t>(map.box[0] * map.elem_bytes,
                                         static_cast<int64_t>(copy.inner_bytes) - x_byte);
  if (y < 0 || y >= static_cast<int64_t>(map.dims[1]) || last <= first) return {nullptr, 0, 0};
  return {map.base + static_cast<uint64_t>(y) * map.strides_bytes[0] + x_byte + first,
          static_cast<uint32_t>(first), static_cast<uint32_t>(last - first)};
}

void IssueLoad(const TensorMap* map, uint32_t bar, uint32_t dst, int32_t x, int32_t y,
               uint32_t cta_mask, const char* what) {
  auto copy = MakeCopy(map, dst, x, y, false, what);
  copy->bar = bar;
  copy->cta_mask = cta_mask;
  for (uint32_t rank = 0; rank < world.kernel->cluster; ++rank) {
    if ((cta_mask >> rank & 1) == 0) continue;
    Cta& cta = world.ctas[rank];
    Mbarrier& barrier = FindMbarrierForAsync(cta, bar, what);
    barrier.async_clock = barrier.phase + 1;
    const AsyncAccess access = {true, barrier.slot, barrier.phase + 1, what};
    const uint32_t num_chunks = static_cast<uint32_t>(copy->chunks.size());
    cta.shadow.CheckAsync(access, copy->chunks.data(), num_chunks);
    cta.shadow.BeginAsync(access, copy->chunks.data(), num_chunks);
  }
  ++world.stats.loads;
  AsyncOp op;
  op.kind = AsyncOp::Kind::kLoad;
  op.copy = std::move(copy);
  Issue(std::move(op));
}

void LandInCta(const TmaCopy& copy, Cta& cta) {
  if (cta.live_threads == 0) {
    Hazard("TMA load lands at %s of cta %u, which has exited", SmemName(copy.address).c_str(),
           cta.rank);
    return;
  }
  const SimTensorMap& map = *copy.map;
  const uint32_t row_bytes = map.box[0] * map.elem_bytes;
  const uint32_t row_chunks = row_bytes / kChunkBytes;
  const uint32_t* chunk = copy.chunks.data();
  alignas(16) uint8_t row_data[kMaxRowBytes];
  for (uint32_t row = 0; row < map.box[1]; ++row) {
    const RowSpan span = ClipRow(copy, row);
    if (span.bytes != row_bytes) std::memset(row_data, 0, row_bytes);
    if (span.bytes != 0) std::memcpy(row_data + span.first_byte, span.gmem, span.bytes);
    for (uint32_t i = 0; i < row_chunks; ++i) {
      std::memcpy(cta.smem + *chunk++, row_data + i * kChunkBytes, kChunkBytes);
    }
  }
  cta.shadow.EndAsync(true, copy.chunks.data(), static_cast<uint32_t>(copy.chunks.size()));
  world.stats.bytes_loaded += row_bytes * map.box[1];
  CompleteBytes(cta, copy.bar, row_bytes * map.box[1]);
}

}  // namespace

void PrefetchTensorMap(const TensorMap* map) { CheckTensorMap(map, "prefetch.tensormap"); }

void TmaLoad2d(const TensorMap* map, uint32_t bar, uint32_t dst, int32_t x, int32_t y) {
  IssueLoad(map, bar, dst, x, y, 1u << current->cta->rank, "TMA load");
}

void TmaLoad2dMulticast(const TensorMap* map, uint32_t bar, uint32_t dst, int32_t x, int32_t y,
                        uint32_t cta_mask) {
  if (cta_mask == 0 || cta_mask >> world.kernel->cluster != 0) {
    Fatal("multicast TMA load with mask %#x in a cluster of %u", cta_mask, world.kernel->cluster);
  }
  IssueLoad(map, bar, dst, x, y, cta_mask, "multicast TMA load");
}

void FinishTmaLoad(const TmaCopy& copy) {
  for (uint32_t rank = 0; rank < world.kernel->cluster; ++rank) {
    if ((copy.cta_mask >> rank & 1) != 0) LandInCta(copy, world.ctas[rank]);
  }
}

void TmaStore2d(const TensorMap* map, uint32_t src, int32_t x, int32_t y) {
  Warp& warp = *current->warp;
  BulkGroups& bulk = current->bulk;
  auto copy = MakeCopy(map, src, x, y, true, "TMA store");
  copy->thread = current;
  copy->group = static_cast<uint32_t>(bulk.newest_id.size());
  const uint32_t id = ++warp.num_stores;
  const uint32_t store_slot = world.num_warps + world.num_warps / kWarpgroupWarps + warp.number;
  const AsyncAccess access = {false, store_slot, id, "TMA store"};
  const uint32_t num_chunks = static_cast<uint32_t>(copy->chunks.size());
  current->cta->shadow.CheckAsync(access, copy->chunks.data(), num_chunks);
  current->cta->shadow.BeginAsync(access, copy->chunks.data(), num_chunks);
  if (bulk.unread.size() == copy->group) bulk.unread.push_back(0);
  ++bulk.unread[copy->group];
  bulk.open_id = id;
  ++world.stats.stores;
  AsyncOp op;
  op.kind = AsyncOp::Kind::kStore;
  op.copy = std::move(copy);
  Issue(std::move(op));
}

void FinishTmaStore(const TmaCopy& copy) {
  const SimTensorMap& map = *copy.map;
  const uint32_t row_chunks = map.box[0] * map.elem_bytes / kChunkBytes;
  const uint32_t* chunk = copy.chunks.data();
  alignas(16) uint8_t row_data[kMaxRowBytes];
  for (uint32_t row = 0; row < map.box[1]; ++row) {
    for (uint32_t i = 0; i < row_chunks; ++i) {
      std::memcpy(row_data + i * kChunkBytes, copy.cta->smem + *chunk++, kChunkBytes);
    }
    const RowSpan span = ClipRow(copy, row);
    if (span.bytes != 0) {
      std::memcpy(span.gmem, row_data + span.first_byte, span.bytes);
      NoteWritten(span.gmem, span.bytes, "TMA store");
    }
    world.stats.bytes_stored += span.bytes;
  }
  copy.cta->shadow.EndAsync(false, copy.chunks.data(), static_cast<uint32_t>(copy.chunks.size()));
  --copy.thread->bulk.unread[copy.group];
  if (copy.thread->blocked_in == Op::kBulkWait) Wake(copy.thread);
}

void BulkCommitGroup() {
  BulkGroups& bulk = current->bulk;
  bulk.unread.resize(bulk.newest_id.size() + 1, 0);
  bulk.newest_id.push_back(bulk.open_id);
  bulk.open_id = 0;
}

void BulkWaitGroupRead(uint32_t max_pending) {
  BulkGroups& bulk = current->bulk;
  const uint32_t committed = static_cast<uint32_t>(bulk.newest_id.size());
  const uint32_t covered = committed > max_pending ? committed - max_pending : 0;
  const uint32_t store_slot =
      world.num_warps + world.num_warps / kWarpgroupWarps + current->warp->number;
  for (uint32_t group = bulk.waited; group < covered; ++group) {
    while (bulk.unread[group] != 0) Block(Op::kBulkWait);
    current->warp->clock.Raise(store_slot, bulk.newest_id[group]);
  }
  bulk.waited = std::max(bulk.waited, covered);
}

void FenceProxyAsync() { current->fenced_writes = current->num_writes; }

}  // namespace fp8gemm::sim
