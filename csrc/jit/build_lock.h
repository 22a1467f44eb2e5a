// SPDX-License-Identifier: Apache-2.0
// What a process holds while it builds a kernel, so that others wait for it and load the result.
#pragma once
#include <chrono>
#include <cstdint>
#include <string_view>

#include "jit/trusted_directory.h"

namespace fp8gemm {

/// Only advice between processes: whoever cannot have the lock builds without it.
///
/// The lock is one byte of the directory's lock file, chosen by the key. There is nothing to clean
/// up: the file is empty and stays, and when the holder dies the operating system unlocks the byte.
class BuildLock {
 public:
  /// Waits until no other process holds the lock of the key. Goes on without it where the
  /// directory cannot be written or its file system has no locks, and when `patience` is over, as
  /// the holder may have been stopped.
  ///
  /// @throws InterruptedError  Ctrl-C while it waited.
  BuildLock(const TrustedDirectory& directory, std::string_view key_text,
            std::chrono::milliseconds patience);
  ~BuildLock();

 private:
  FileDescriptor file_;  // none without the lock
  const int64_t offset_;
};

}  // namespace fp8gemm
