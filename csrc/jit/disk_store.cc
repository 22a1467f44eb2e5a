// SPDX-License-Identifier: Apache-2.0
// File format and atomic replacement of the kernel cache's entries.
#include "jit/disk_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>

namespace fp8gemm {
namespace {

namespace fs = std::filesystem;

constexpr char kMagic[8] = {'F', 'P', '8', 'G', 'E', 'M', 'M', '\n'};
constexpr uint32_t kVersion = 1;
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 30;
constexpr size_t kMaxLabelLength = 120;
constexpr size_t kHashLength = 32;  // hexadecimal digits
constexpr std::string_view kSuffix = ".bin";
constexpr std::string_view kTempMark = ".bin.tmp-";

// A file is this header, the key, the image, and a Checksum over all of that, in host byte order.
struct Header {
  char magic[8];
  uint32_t version;
  uint32_t reserved;
  uint64_t key_bytes;
  uint64_t image_bytes;
};
using Checksum = uint64_t;

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() { Close(); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;

  int get() const { return fd_; }
  bool Close() {  // reports errors that some file systems only raise here
    const int fd = fd_;
    fd_ = -1;
    return fd < 0 || close(fd) == 0;
  }

 private:
  int fd_;
};

// FNV-1a. Not cryptographic, and need not be: keys are compared in full and images are checksummed
// against accidents, not against attackers, whom the directory's mode keeps out.
template <typename Word>
Word Fnv1a(std::string_view text, Word basis, Word prime) {
  Word hash = basis;
  for (const unsigned char byte : text) hash = (hash ^ byte) * prime;
  return hash;
}

Checksum ChecksumOf(std::string_view text) {
  return Fnv1a<uint64_t>(text, 0xcbf29ce484222325u, 0x100000001b3u);
}

std::string HashOf(std::string_view text) {
  __extension__ typedef unsigned __int128 Word;
  constexpr Word kBasis = (Word{0x6c62272e07bb0142u} << 64) | 0x62b821756295c58du;
  constexpr Word kPrime = (Word{1} << 88) | 0x13bu;
  Word hash = Fnv1a<Word>(text, kBasis, kPrime);
  std::string digits(kHashLength, '0');
  for (size_t i = kHashLength; i-- > 0; hash >>= 4) {
    digits[i] = "0123456789abcdef"[static_cast<unsigned>(hash & 15)];
  }
  return digits;
}

std::string FileNameOf(const std::string& label) {
  std::string name = label.substr(0, kMaxLabelLength);
  for (char& c : name) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                       (c >= 'A' && c <= 'Z') || c == '_' || c == '-' || c == '.';
    if (!plain) c = '_';
  }
  return name;
}

std::string Encode(const std::string& key_text, const std::string& image) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.key_bytes = key_text.size();
  header.image_bytes = image.size();
  std::string file(reinterpret_cast<const char*>(&header), sizeof(header));
  file += key_text;
  file += image;
  const Checksum checksum = ChecksumOf(file);
  file.append(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
  return file;
}

DiskStore::Loaded Decode(const std::string& file, const std::string& key_text) {
  DiskStore::Loaded corrupt{DiskStore::Status::kCorrupt, {}};
  if (file.size() < sizeof(Header) + sizeof(Checksum)) return corrupt;
  Header header;
  std::memcpy(&header, file.data(), sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) return corrupt;
  if (header.version != kVersion) return {};
  const uint64_t body_bytes = file.size() - sizeof(Header) - sizeof(Checksum);
  if (header.key_bytes > body_bytes || header.image_bytes != body_bytes - header.key_bytes ||
      header.image_bytes == 0) {
    return corrupt;
  }
  const std::string_view text = file;
  Checksum stored;
  std::memcpy(&stored, file.data() + file.size() - sizeof(stored), sizeof(stored));
  if (ChecksumOf(text.substr(0, file.size() - sizeof(Checksum))) != stored) return corrupt;
  if (text.substr(sizeof(Header), header.key_bytes) != key_text) return {};
  return {DiskStore::Status::kHit,
          std::string(text.substr(sizeof(Header) + header.key_bytes, header.image_bytes))};
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

// errno values of file systems that have no fsync; the rename is then as safe as it gets.
bool Sync(int fd) { return fsync(fd) == 0 || errno == EINVAL || errno == ENOSYS; }

std::string Failure(const std::string& action, int error) {
  return action + ": " + std::system_category().message(error);
}

// Parents get the usual mode, the directory itself 0700: it holds code that will be executed.
std::string CreateDirectory(const std::string& directory) {
  std::error_code error;
  const fs::path parent = fs::path(directory).parent_path();
  if (!parent.empty()) fs::create_directories(parent, error);
  if (error) return Failure("cannot create " + parent.string(), error.value());
  if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    const int cause = errno;
    return Failure("cannot create " + directory, cause);
  }
  return {};
}

// Label of an entry's file name, or empty if the file is not an entry.
std::string LabelOf(const std::string& name) {
  const size_t tail = 1 + kHashLength + kSuffix.size();
  if (name.size() < tail || !name.ends_with(kSuffix) || name[name.size() - tail] != '-') return {};
  return name.substr(0, name.size() - tail);
}

}  // namespace

DiskStore::DiskStore(const std::string& directory)
    : directory_(fs::path(directory).lexically_normal().string()) {
  if (directory_.size() > 1 && directory_.back() == '/') directory_.pop_back();
}

std::string DiskStore::PathOf(const std::string& key_text, const std::string& label) const {
  return directory_ + '/' + FileNameOf(label) + '-' + HashOf(key_text) + std::string(kSuffix);
}

DiskStore::Loaded DiskStore::Load(const std::string& key_text, const std::string& label) const {
  FileDescriptor file(open(PathOf(key_text, label).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info = {};
  if (file.get() < 0 || fstat(file.get(), &info) != 0 || !S_ISREG(info.st_mode)) return {};
  const auto file_bytes = static_cast<uint64_t>(info.st_size);
  if (file_bytes > kMaxFileBytes) return {Status::kCorrupt, {}};
  std::string text(file_bytes, '\0');
  if (!ReadAll(file.get(), text)) return {Status::kCorrupt, {}};
  return Decode(text, key_text);
}

std::string DiskStore::Store(const std::string& key_text, const std::string& label,
                             const std::string& image) const {
  const std::string failure = CreateDirectory(directory_);
  if (!failure.empty()) return failure;
  const std::string path = PathOf(key_text, label);
  // mkstemp creates with O_EXCL, so the name is unique among processes and hosts alike.
  std::string temp =
      path.substr(0, path.size() - kSuffix.size()) + std::string(kTempMark) + "XXXXXX";
  FileDescriptor file(mkostemp(temp.data(), O_CLOEXEC));
  if (file.get() < 0) {
    const int cause = errno;
    return Failure("cannot create a file in " + directory_, cause);
  }
  // mkstemp's 0600 would hide entries in a directory that users share on purpose.
  const bool written = fchmod(file.get(), 0644) == 0 &&
                       WriteAll(file.get(), Encode(key_text, image)) && Sync(file.get()) &&
                       file.Close() && rename(temp.c_str(), path.c_str()) == 0;
  if (written) return {};
  const int cause = errno;
  unlink(temp.c_str());
  return Failure("cannot write " + path, cause);
}

std::vector<DiskEntry> DiskStore::List() const {
  std::vector<DiskEntry> entries;
  std::error_code error;
  fs::directory_iterator it(directory_, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    const std::string label = LabelOf(it->path().filename().string());
    std::error_code size_error;  // the file may be gone by now
    const uint64_t file_bytes = label.empty() ? 0 : it->file_size(size_error);
    if (!label.empty() && !size_error) entries.push_back({it->path().string(), label, file_bytes});
  }
  std::sort(entries.begin(), entries.end(),
            [](const DiskEntry& x, const DiskEntry& y) { return x.path < y.path; });
  return entries;
}

size_t DiskStore::Clear() const {
  size_t removed = 0;
  for (const DiskEntry& entry : List()) removed += unlink(entry.path.c_str()) == 0 ? 1 : 0;
  std::vector<std::string> temps;
  std::error_code error;
  fs::directory_iterator it(directory_, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    const std::string path = it->path().string();
    if (path.find(kTempMark, directory_.size()) != std::string::npos) temps.push_back(path);
  }
  for (const std::string& temp : temps) unlink(temp.c_str());
  return removed;
}

}  // namespace fp8gemm
