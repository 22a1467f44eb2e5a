// SPDX-License-Identifier: Apache-2.0
// What a process holds while it builds a kernel, so that others wait for it and load the result.
#pragma once
#include <chrono>
#include <cstdint>
#include <string_view>
#include <utility>

#include "jit/trusted_directory.h"

namespace fp8gemm {

/// Advice between processes, never a condition: whoever cannot have the lock builds without it.
///
/// One byte of the directory's lock file, chosen by the key, so there is nothing to clean up: the
/// file is empty and stays, and the kernel lets go of the byte when its holder dies.
class BuildLock {
 public:
  /// Holds nothing.
  BuildLock() = default;

  /// Waits until no other process holds the lock of the key. Returns without it where the
  /// directory cannot be written or its file system has no locks, and when `patience` is over, as
  /// the holder may have been stopped.
  ///
  /// @throws InterruptedError  Ctrl-C while it waited.
  BuildLock(const TrustedDirectory& directory, std::string_view key_text,
            std::chrono::milliseconds patience);
  ~BuildLock();
  BuildLock(BuildLock&& other) noexcept = default;
  BuildLock& operator=(BuildLock&& other) noexcept {
    std::swap(file_, other.file_);
    std::swap(offset_, other.offset_);
    return *this;
  }

  bool is_held() const { return file_.get() >= 0; }

 private:
  FileDescriptor file_;
  int64_t offset_ = 0;
};

}  // namespace fp8gemm
