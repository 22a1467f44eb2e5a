// SPDX-License-Identifier: Apache-2.0
// Kernel images in a trusted directory, safe for many threads, processes and hosts at once.
//
// One file per image: <label>-<128-bit hash of the key>.bin. A file appears by an atomic rename, so
// a reader sees a whole entry or none; size fields and a checksum catch what a crash or a full disk
// left behind. The complete key is in the file: two keys with one hash are told apart.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fp8gemm {

struct DiskEntry {
  std::string name;
  std::string label;
  uint64_t file_bytes = 0;
};

class DiskStore {
 public:
  enum class Status { kHit, kMiss, kCorrupt };
  struct Loaded {
    Status status = Status::kMiss;
    std::string image;  // empty unless kHit
  };

  /// Touches nothing: the directory is created when the first image is stored. Of a directory that
  /// cannot be trusted nothing is read, written or removed.
  explicit DiskStore(const std::string& directory);

  /// File of a key.
  std::string PathOf(const std::string& key_text, const std::string& label) const;

  /// An entry that cannot be opened, of another key or of another format version is a miss; one
  /// that another user could have written is corrupt.
  Loaded Load(const std::string& key_text, const std::string& label) const;

  /// Writes or replaces an entry.
  ///
  /// @return  Empty, or why the entry was not written; the previous one is then still in place.
  std::string Store(const std::string& key_text, const std::string& label,
                    const std::string& image) const;

  /// Why the directory is not used, and what to do; empty if it is, or does not exist yet.
  std::string Refusal() const;

  /// Finished entries, sorted by name; none if the directory does not exist.
  std::vector<DiskEntry> List() const;

  /// Removes all entries and the temporary files that dead processes left; other files stay.
  ///
  /// @return  Number of entries removed.
  size_t Clear() const;

  const std::string& directory() const { return directory_; }

 private:
  std::string directory_;
};

}  // namespace fp8gemm
