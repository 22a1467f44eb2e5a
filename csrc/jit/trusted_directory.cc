// SPDX-License-Identifier: Apache-2.0
// Who may write to a directory and to the files in it; reading and replacing them.
#include "jit/trusted_directory.h"

#include <dirent.h>
#include <fcntl.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <system_error>

namespace fp8gemm {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxFileBytes = uint64_t{1} << 30;
constexpr char kElsewhere[] = "set JAX_FP8GEMM_CACHE_DIR to a directory of your own";

std::string Failure(const std::string& action, int error) {
  return action + " (" + std::system_category().message(error) + "): " + kElsewhere;
}

bool IsOwnerTrusted(const struct stat& info) {
  return info.st_uid == geteuid() || info.st_uid == 0;
}

// Where there is an access control list, the group's bits are the most that it grants to anyone.
bool IsWritableByOthers(const struct stat& info) {
  return (info.st_mode & (S_IWGRP | S_IWOTH)) != 0;
}

std::string DistrustOf(const std::string& path, const struct stat& info) {
  if (!IsOwnerTrusted(info)) {
    return path + " belongs to user " + std::to_string(info.st_uid) + ", and this is user " +
           std::to_string(geteuid()) + ": " + kElsewhere;
  }
  if (!IsWritableByOthers(info)) return {};
  // A sticky directory is shared on purpose, as /tmp is, and only an owner can change a mode.
  const bool mendable = info.st_uid == geteuid() && (info.st_mode & S_ISVTX) == 0;
  return path + " can be written to by other users, who could put code into it: " +
         (mendable ? "run `chmod go-w " + path + "` or " : "") + kElsewhere;
}

// Whoever can rename our directory can put another of this user's in its place. That a group can is
// accepted: with a umask of 002, ~/.cache is often writable by the user's private group.
std::string DistrustOfParents(const std::string& path, fs::path at) {
  while (at.has_relative_path()) {
    at = at.parent_path();
    struct stat info = {};
    if (stat(at.c_str(), &info) != 0 || (info.st_mode & S_IWOTH) == 0) continue;
    if ((info.st_mode & S_ISVTX) != 0) continue;
    return path + " can be replaced by everyone, who can write to " + at.string() +
           ": run `chmod o-w " + at.string() + "` or " + kElsewhere;
  }
  return {};
}

// The parents by name, which may lead over links, and those that the directory really lies in.
std::string DistrustOfAllParents(const std::string& path) {
  std::error_code error;
  const fs::path absolute = fs::absolute(path, error);
  const fs::path real = error ? fs::path() : fs::weakly_canonical(absolute, error);
  if (error) return Failure("cannot resolve " + path, error.value());
  const std::string distrust = DistrustOfParents(path, absolute);
  return distrust.empty() ? DistrustOfParents(path, real) : distrust;
}

// With a umask of 002, the usual mode of parents would let a group in.
bool Create(const fs::path& path) {
  if (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return true;
  const fs::path parent = path.parent_path();
  if (errno != ENOENT || parent.empty() || parent == path || !Create(parent)) return false;
  return mkdir(path.c_str(), 0700) == 0 || errno == EEXIST;
}

bool ReadAll(int fd, std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t got = read(fd, text.data() + done, text.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    done += static_cast<size_t>(got);
  }
  return true;
}

bool WriteAll(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t put = write(fd, text.data(), text.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return false;
    text.remove_prefix(static_cast<size_t>(put));
  }
  return true;
}

// Goes on without it on file systems that have no fsync, which these values of errno tell.
bool Sync(int fd) { return fsync(fd) == 0 || errno == EINVAL || errno == ENOSYS; }

// A new file in a directory, and its name. Other hosts and containers may have the same process
// number, so it only makes the first name likely to be free.
int CreateTemp(int directory, const std::string& name, std::string& temp) {
  static std::atomic<unsigned> count = 0;
  int fd = -1;
  do {
    temp = name + std::string(TrustedDirectory::kTempMark) + std::to_string(getpid()) + "-" +
           std::to_string(count++);
    fd = openat(directory, temp.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  } while (fd < 0 && errno == EEXIST);
  return fd;
}

}  // namespace

TrustedDirectory::TrustedDirectory(const std::string& path, IfMissing if_missing) : path_(path) {
  refusal_ = DistrustOfAllParents(path);
  if (!refusal_.empty()) return;
  const bool create = if_missing == IfMissing::kCreate;
  if (create && !Create(path)) {
    const int cause = errno;
    refusal_ = Failure("cannot create " + path, cause);
    return;
  }
  const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
  FileDescriptor directory(open(path.c_str(), flags));
  struct stat info = {};
  if (directory.get() < 0 || fstat(directory.get(), &info) != 0) {
    const int cause = errno;
    if (lstat(path.c_str(), &info) == 0 && S_ISLNK(info.st_mode)) {
      refusal_ = path + " is a link: set JAX_FP8GEMM_CACHE_DIR to what it leads to";
    } else if (cause != ENOENT || create) {
      refusal_ = Failure("cannot open " + path, cause);
    }
    return;
  }
  refusal_ = DistrustOf(path, info);
  if (refusal_.empty()) directory_ = std::move(directory);
}

TrustedDirectory::Found TrustedDirectory::Read(const std::string& name, std::string& text) const {
  const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
  FileDescriptor file(openat(directory_.get(), name.c_str(), flags));
  if (file.get() < 0) return errno == ELOOP ? Found::kUntrusted : Found::kNothing;
  struct stat info = {};
  if (fstat(file.get(), &info) != 0) return Found::kNothing;
  if (!S_ISREG(info.st_mode) || !IsOwnerTrusted(info) || IsWritableByOthers(info) ||
      static_cast<uint64_t>(info.st_size) > kMaxFileBytes) {
    return Found::kUntrusted;
  }
  text.assign(static_cast<size_t>(info.st_size), '\0');
  return ReadAll(file.get(), text) ? Found::kFile : Found::kNothing;
}

FileDescriptor TrustedDirectory::OpenLockFile(const std::string& name) const {
  const int flags = O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
  FileDescriptor file(openat(directory_.get(), name.c_str(), flags, 0600));
  struct stat info = {};
  const bool is_good = file.get() >= 0 && fstat(file.get(), &info) == 0 && S_ISREG(info.st_mode);
  return is_good ? std::move(file) : FileDescriptor();
}

std::string TrustedDirectory::Replace(const std::string& name, std::string_view text) const {
  const int directory = directory_.get();
  std::string temp;
  FileDescriptor file(CreateTemp(directory, name, temp));
  if (file.get() < 0) {
    const int cause = errno;
    return Failure("cannot create a file in " + path_, cause);
  }
  // 0600 would hide files from the users of a directory that root fills for all.
  const bool written = fchmod(file.get(), 0644) == 0 && WriteAll(file.get(), text) &&
                       Sync(file.get()) && file.Close() &&
                       renameat(directory, temp.c_str(), directory, name.c_str()) == 0;
  if (written) return {};
  const int cause = errno;
  Remove(temp);
  return Failure("cannot write " + path_ + '/' + name, cause);
}

void TrustedDirectory::Touch(const std::string& name) const {
  utimensat(directory_.get(), name.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
}

bool TrustedDirectory::Remove(const std::string& name) const {
  return unlinkat(directory_.get(), name.c_str(), 0) == 0;
}

std::vector<TrustedDirectory::File> TrustedDirectory::List() const {
  std::vector<File> files;
  FileDescriptor again(openat(directory_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (again.get() < 0) return files;
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(again.get()), &closedir);
  if (stream == nullptr) return files;
  again.Release();  // the stream closes it
  while (const dirent* entry = readdir(stream.get())) {
    struct stat info = {};  // the file may be gone by now
    if (fstatat(directory_.get(), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0) continue;
    if (S_ISDIR(info.st_mode)) continue;
    files.push_back({entry->d_name, static_cast<uint64_t>(info.st_size), info.st_mtim});
  }
  return files;
}

}  // namespace fp8gemm
