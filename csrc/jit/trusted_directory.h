// SPDX-License-Identifier: Apache-2.0
// A directory whose files may be run: nobody but this user and root can have written them.
//
// Everything is judged and done through one descriptor of the directory, so that what was judged is
// what is used, whatever somebody renames meanwhile. docs/architecture.md has the rules.
#pragma once
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fp8gemm {

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd = -1) : fd_(fd) {}
  ~FileDescriptor() { Close(); }
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.Release()) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }

  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }
  bool Close() {  // reports errors that some file systems only raise here
    const int fd = Release();
    return fd < 0 || close(fd) == 0;
  }

 private:
  int fd_;
};

class TrustedDirectory {
 public:
  enum class IfMissing { kStayClosed, kCreate };
  enum class Found { kFile, kNothing, kUntrusted };
  struct File {
    std::string name;
    uint64_t bytes = 0;
    timespec modified = {};
  };

  /// Opens a directory that can be trusted. Creates missing ones, parents too, with mode 0700.
  TrustedDirectory(const std::string& path, IfMissing if_missing);

  /// Where this is false there is nothing to read, list or write.
  bool is_open() const { return directory_.get() >= 0; }

  /// Why the directory is not open, and what to do; empty if it merely does not exist.
  const std::string& refusal() const { return refusal_; }

  /// Reads a regular file that nobody else can have written; follows no link.
  Found Read(const std::string& name, std::string& text) const;

  /// Writes or replaces a file by an atomic rename.
  ///
  /// @return  Empty, or why the file was not written; the previous one is then still in place.
  std::string Replace(const std::string& name, std::string_view text) const;

  /// Opens an empty file whose locks only this user can take, creating it where there is none; no
  /// descriptor where the directory cannot be written or the file is of another kind.
  FileDescriptor OpenLockFile(const std::string& name) const;

  /// Makes now the time at which a file was modified, if the file belongs to this user.
  void Touch(const std::string& name) const;

  bool Remove(const std::string& name) const;

  /// All but directories, in no order.
  std::vector<File> List() const;

  /// What Replace was writing when its process died has a name with this in it.
  static constexpr std::string_view kTempMark = ".tmp-";

 private:
  std::string path_;
  std::string refusal_;
  FileDescriptor directory_;
};

}  // namespace fp8gemm
