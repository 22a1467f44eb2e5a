// SPDX-License-Identifier: Apache-2.0
// Shadow of a CTA's shared memory: who accessed what last, and what is in flight.
//
// Two layers. Asynchronous copies and wgmma touch whole 16-byte chunks, so their records are per
// chunk. Generic accesses are recorded per 4-byte word, because neighbouring words may belong to
// different pipeline stages; the words of a chunk are reset only when first touched.
#pragma once
#include <cstdint>
#include <vector>

namespace fp8gemm::sim {

struct Thread;
struct Warp;

// An asynchronous access: what it is, whose completion ends it, and the warp that issued it.
struct AsyncAccess {
  bool is_write;
  uint32_t slot;   // clock slot that covers the access once it is over
  uint32_t clock;  // value of the slot that does
  const char* what;
};

class Shadow {
 public:
  /// Forgets everything; `bytes` of shared memory are in use.
  void Reset(uint32_t bytes);

  /// Checks and records a generic access by `thread`. Offsets are within dynamic shared memory.
  void GenericRead(const Thread& thread, uint32_t offset, uint32_t bytes);
  void GenericWrite(Thread& thread, uint32_t offset, uint32_t bytes);

  /// The 8 bytes at `offset` hold an mbarrier from now on.
  void PlaceBarrier(Thread& thread, uint32_t offset);

  /// Checks and records chunks that an operation issued by the current warp will access.
  void CheckAsync(const AsyncAccess& access, const uint32_t* chunks, uint32_t num_chunks);
  /// Marks chunks as in flight, or as landed again.
  void BeginAsync(const AsyncAccess& access, const uint32_t* chunks, uint32_t num_chunks);
  void EndAsync(bool is_write, const uint32_t* chunks, uint32_t num_chunks);

 private:
  static constexpr uint32_t kChunkBytes = 16;
  static constexpr uint32_t kWordsPerChunk = 4;
  static constexpr int kMaxAsyncReaders = 3;
  static constexpr int kInlineReaders = 2;
  static constexpr uint32_t kMaxWarps = 64;

  struct Chunk {
    uint32_t write_clock;  // 0: never written by an asynchronous operation
    uint32_t read_clock[kMaxAsyncReaders];
    uint16_t write_slot;
    uint16_t read_slot[kMaxAsyncReaders];
    uint16_t readers;  // in flight
    uint8_t writers;   // in flight
    bool has_words;
  };

  struct Word {
    uint32_t write_clock;
    uint32_t write_number;  // per thread; 0: no write that still needs a proxy fence
    uint32_t read_clock[kInlineReaders];
    uint16_t read_warp[kInlineReaders];
    uint16_t writer;    // thread number in the cluster + 1; 0: never written
    uint16_t overflow;  // 1 + index of a clock per warp, for words that many warps read
    uint16_t reader;    // thread number in the cluster + 1 of the last read; 0: never read
    bool holds_barrier;
    uint32_t write_epoch;  // lane epoch of the writer's warp
    uint32_t read_epoch;   // lane epoch of the last reader's warp
  };

  Word* Words(uint32_t chunk);
  bool CheckGenericChunk(const Thread& thread, const Chunk& chunk, uint32_t offset, bool is_write);
  bool CheckWordRaces(const Warp& warp, const Word& word, uint32_t offset, bool is_write,
                      const char* what);
  bool CheckLaneRaces(const Thread& thread, const Word& word, uint32_t offset, bool is_write);
  bool CheckAsyncChunk(const AsyncAccess& access, const Chunk& chunk, uint32_t index);
  bool CheckAsyncWords(const AsyncAccess& access, uint32_t index);
  bool CheckAsyncOrder(const AsyncAccess& access, const Chunk& chunk, uint32_t index);
  void RecordAsync(const AsyncAccess& access, Chunk& chunk, uint32_t index);
  void RecordRead(Word& word, const Thread& thread);

  std::vector<Chunk> chunks_;
  std::vector<Word> words_;
  std::vector<uint32_t> overflow_;  // [index][kMaxWarps]
};

}  // namespace fp8gemm::sim
