// SPDX-License-Identifier: Apache-2.0
// Kernel images in a directory, safe for many threads, processes and hosts at once.
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
  std::string path;
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

  /// Touches nothing: the directory is created, with mode 0700, when the first image is stored.
  explicit DiskStore(const std::string& directory);

  /// File of a key. Characters of the label that do not belong in a file name become '_'.
  std::string PathOf(const std::string& key_text, const std::string& label) const;

  /// An entry that cannot be opened, of another key or of another format version is a miss.
  Loaded Load(const std::string& key_text, const std::string& label) const;

  /// Writes or replaces an entry.
  ///
  /// @return  Empty, or why the entry was not written; the previous one is then still in place.
  std::string Store(const std::string& key_text, const std::string& label,
                    const std::string& image) const;

  /// Finished entries, sorted by path; none if the directory does not exist.
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
