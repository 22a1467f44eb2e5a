// SPDX-License-Identifier: Apache-2.0
// Kernel images in a trusted directory, safe for many threads, processes and hosts at once.
//
// One file per image: <label>-<128-bit hash of the key>.bin. A file appears by an atomic rename, so
// a reader sees a whole entry or none; size fields and a checksum catch what a crash or a full disk
// left behind. The complete key is in the file: two keys with one hash are told apart.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "jit/build_lock.h"

namespace fp8gemm {

struct DiskEntry {
  std::string name;
  std::string label;
  uint64_t file_bytes = 0;
};

class DiskStore {
 public:
  static constexpr uint64_t kNoLimit = ~uint64_t{0};

  enum class Status { kHit, kMiss, kCorrupt };
  struct Loaded {
    Status status = Status::kMiss;
    std::string image;  // empty unless kHit
  };

  /// Touches nothing: the directory is created when the first image is stored. Of a directory that
  /// cannot be trusted nothing is read, written or removed.
  ///
  /// @param limit_bytes  What all entries may have together.
  explicit DiskStore(const std::string& directory, uint64_t limit_bytes = kNoLimit);

  std::string PathOf(const std::string& key_text, const std::string& label) const;

  /// An entry that cannot be opened or is of another key is a miss; one that is damaged, of another
  /// format version, or that another user could have written is corrupt, and removed.
  Loaded Load(const std::string& key_text, const std::string& label) const;

  /// Writes or replaces an entry. Makes room for it: removes the entries that were not loaded for
  /// the longest time until all keep to the limit, and what writers that died have left.
  ///
  /// @return  Empty, or why the entry was not written; the previous one is then still in place.
  std::string Store(const std::string& key_text, const std::string& label,
                    const std::string& image) const;

  /// The lock that whoever builds the image of a key holds until it is stored; null where the
  /// directory cannot be used.
  std::unique_ptr<BuildLock> LockBuild(const std::string& key_text,
                                       std::chrono::milliseconds patience) const;

  /// Why the directory is not used, and what to do; empty if it is, or does not exist yet.
  std::string Refusal() const;

  /// Finished entries, sorted by name; none if the directory does not exist.
  std::vector<DiskEntry> List() const;

  /// Reads an entry, changes nothing. Returns why it would not be loaded, empty if it would.
  std::string FaultOf(const std::string& name) const;

  /// Removes all entries and what writers that died have left; other files stay.
  ///
  /// @return  Number of entries removed.
  size_t Clear() const;

  const std::string& directory() const { return directory_; }

 private:
  std::string directory_;
  uint64_t limit_bytes_;
};

}  // namespace fp8gemm
