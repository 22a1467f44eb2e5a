// SPDX-License-Identifier: Apache-2.0
// Locks of open file descriptions: unlike POSIX's own they are between threads too, and closing
// another descriptor of the file does not drop them.
#include "jit/build_lock.h"

#include <fcntl.h>

#include <cerrno>
#include <thread>

#include "driver/error.h"
#include "driver/interrupts.h"
#include "jit/fnv1a.h"

namespace fp8gemm {
namespace {

constexpr char kLockName[] = ".lock";
// Much less than a compilation takes, and rare enough to cost nothing.
constexpr std::chrono::milliseconds kPollInterval(10);

// Two keys with the same offset would merely wait for each other.
int64_t OffsetOf(std::string_view key_text) { return static_cast<int64_t>(Fnv1a64(key_text) >> 2); }

bool SetLock(int fd, int64_t offset, short type) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = offset;
  lock.l_len = 1;
  return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

}  // namespace

BuildLock::BuildLock(const TrustedDirectory& directory, std::string_view key_text,
                     std::chrono::milliseconds patience)
    : file_(directory.OpenLockFile(kLockName)), offset_(OffsetOf(key_text)) {
  const uint64_t mark = WatchInterrupts();
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (file_.get() >= 0 && !SetLock(file_.get(), offset_, F_WRLCK)) {
    const bool is_taken = errno == EAGAIN || errno == EACCES || errno == EINTR;
    if (!is_taken || std::chrono::steady_clock::now() >= deadline) {
      file_.Close();
    } else if (WasInterrupted(mark)) {
      throw InterruptedError();
    } else {
      std::this_thread::sleep_for(kPollInterval);
    }
  }
}

// Closing the file would not unlock it: a child that was forked meanwhile has it open too. For the
// same reason such a child keeps the lock of a parent that dies while it builds; others then wait
// for as long as they have patience.
BuildLock::~BuildLock() {
  if (file_.get() >= 0) SetLock(file_.get(), offset_, F_UNLCK);
}

}  // namespace fp8gemm
