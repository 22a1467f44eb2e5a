// SPDX-License-Identifier: Apache-2.0
// File format and atomic replacement of the kernel cache's entries.
#include "jit/disk_store.h"

#include <algorithm>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <functional>
#include <string_view>
#include <tuple>

#include "jit/fnv1a.h"
#include "jit/trusted_directory.h"

namespace fp8gemm {
namespace {

using Found = TrustedDirectory::Found;
using IfMissing = TrustedDirectory::IfMissing;

constexpr char kMagic[8] = {'F', 'P', '8', 'G', 'E', 'M', 'M', '\n'};
constexpr uint32_t kVersion = 1;
constexpr size_t kMaxLabelLength = 120;
constexpr size_t kHashLength = 32;  // hexadecimal digits
constexpr std::string_view kSuffix = ".bin";

// A file is this header, the key, the image, and a Checksum over all of that, in host byte order.
struct Header {
  char magic[8];
  uint32_t version;
  uint32_t reserved;
  uint64_t key_bytes;
  uint64_t image_bytes;
};
using Checksum = uint64_t;

// Keys are compared in full, and images are checksummed against accidents, not against attackers,
// whom TrustedDirectory keeps out.
Checksum ChecksumOf(std::string_view text) { return Fnv1a64(text); }

std::string HashOf(std::string_view text) {
  using Word = unsigned __int128;
  constexpr Word kBasis = (Word{0x6c62272e07bb0142u} << 64) | 0x62b821756295c58du;
  constexpr Word kPrime = (Word{1} << 88) | 0x13bu;
  Word hash = Fnv1a<Word>(text, kBasis, kPrime);
  std::string digits(kHashLength, '0');
  for (size_t i = kHashLength; i-- > 0; hash >>= 4) {
    digits[i] = "0123456789abcdef"[static_cast<unsigned>(hash & 15)];
  }
  return digits;
}

bool IsPlain(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         c == '-' || c == '.';
}

// End of the name of a key's file.
std::string TailOf(std::string_view key_text) {
  return '-' + HashOf(key_text) + std::string(kSuffix);
}

// Characters of the label that do not belong in a file name become '_'.
std::string NameOf(const std::string& key_text, const std::string& label) {
  std::string name = label.substr(0, kMaxLabelLength);
  std::ranges::replace_if(name, std::not_fn(IsPlain), '_');
  return name + TailOf(key_text);
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

// The key and the image of a file that is a whole entry, or else what is wrong with it.
struct Decoded {
  const char* fault = nullptr;
  std::string_view key_text{};
  std::string_view image{};
};

Decoded Decode(std::string_view file) {
  if (file.size() < sizeof(Header) + sizeof(Checksum)) return {"it is too short"};
  Header header;
  std::memcpy(&header, file.data(), sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) return {"it is no kernel"};
  if (header.version != kVersion) return {"it is of another version"};
  const std::string_view content = file.substr(0, file.size() - sizeof(Checksum));
  const std::string_view body = content.substr(sizeof(Header));
  if (header.key_bytes > body.size() || header.image_bytes != body.size() - header.key_bytes ||
      header.image_bytes == 0) {
    return {"its size is wrong"};
  }
  Checksum stored;
  std::memcpy(&stored, file.data() + content.size(), sizeof(stored));
  if (ChecksumOf(content) != stored) return {"its checksum is wrong"};
  return {nullptr, body.substr(0, header.key_bytes), body.substr(header.key_bytes)};
}

// Label of an entry's file name, or empty if the file is not an entry.
std::string LabelOf(const std::string& name) {
  const size_t tail = 1 + kHashLength + kSuffix.size();
  if (name.size() < tail || !name.ends_with(kSuffix) || name[name.size() - tail] != '-') return {};
  if (!std::ranges::all_of(name, IsPlain)) return {};
  return name.substr(0, name.size() - tail);
}

// Whether a file is what a writer that died has left. On which host the writer runs, and whether it
// still does, cannot be known, so files get an hour: much more than it takes to write one, or than
// the clocks of hosts differ.
bool IsOrphan(const TrustedDirectory::File& file) {
  constexpr time_t kOldSeconds = 3600;
  const size_t mark = file.name.find(TrustedDirectory::kTempMark);
  return mark != std::string::npos && !LabelOf(file.name.substr(0, mark)).empty() &&
         file.modified.tv_sec < time(nullptr) - kOldSeconds;
}

// Removes the entries that were not used for the longest time until all keep to the limit, and what
// dead writers left. Two processes that do so at once choose the same entries.
void MakeRoom(const TrustedDirectory& directory, const std::string& kept, uint64_t limit_bytes) {
  std::vector<TrustedDirectory::File> entries;
  uint64_t total_bytes = 0;
  for (const TrustedDirectory::File& file : directory.List()) {
    if (IsOrphan(file)) directory.Remove(file.name);
    if (LabelOf(file.name).empty()) continue;
    total_bytes += file.bytes;
    if (file.name != kept) entries.push_back(file);
  }
  std::ranges::sort(entries, {}, [](const TrustedDirectory::File& file) {
    return std::tie(file.modified.tv_sec, file.modified.tv_nsec, file.name);
  });
  for (const TrustedDirectory::File& entry : entries) {
    if (total_bytes <= limit_bytes) return;
    directory.Remove(entry.name);
    total_bytes -= entry.bytes;
  }
}

}  // namespace

DiskStore::DiskStore(const std::string& directory, uint64_t limit_bytes)
    : directory_(std::filesystem::path(directory).lexically_normal().string()),
      limit_bytes_(limit_bytes) {
  if (directory_.size() > 1 && directory_.back() == '/') directory_.pop_back();
}

std::string DiskStore::PathOf(const std::string& key_text, const std::string& label) const {
  return directory_ + '/' + NameOf(key_text, label);
}

DiskStore::Loaded DiskStore::Load(const std::string& key_text, const std::string& label) const {
  const TrustedDirectory directory(directory_, IfMissing::kStayClosed);
  const std::string name = NameOf(key_text, label);
  std::string text;
  const Found found = directory.Read(name, text);
  if (found == Found::kNothing) return {};
  const Decoded entry = Decode(text);
  if (found == Found::kUntrusted || entry.fault != nullptr) {
    directory.Remove(name);
    return {Status::kCorrupt, {}};
  }
  if (entry.key_text != key_text) return {};
  directory.Touch(name);
  return {Status::kHit, std::string(entry.image)};
}

std::string DiskStore::Store(const std::string& key_text, const std::string& label,
                             const std::string& image) const {
  const TrustedDirectory directory(directory_, IfMissing::kCreate);
  if (!directory.is_open()) return directory.refusal();
  const std::string name = NameOf(key_text, label);
  const std::string failure = directory.Replace(name, Encode(key_text, image));
  if (failure.empty()) MakeRoom(directory, name, limit_bytes_);
  return failure;
}

std::unique_ptr<BuildLock> DiskStore::LockBuild(const std::string& key_text,
                                                std::chrono::milliseconds patience) const {
  const TrustedDirectory directory(directory_, IfMissing::kCreate);
  if (!directory.is_open()) return nullptr;
  return std::make_unique<BuildLock>(directory, key_text, patience);
}

std::string DiskStore::Refusal() const {
  return TrustedDirectory(directory_, IfMissing::kStayClosed).refusal();
}

std::vector<DiskEntry> DiskStore::List() const {
  std::vector<DiskEntry> entries;
  const TrustedDirectory directory(directory_, IfMissing::kStayClosed);
  for (const TrustedDirectory::File& file : directory.List()) {
    const std::string label = LabelOf(file.name);
    if (!label.empty()) entries.push_back({file.name, label, file.bytes});
  }
  std::ranges::sort(entries, {}, &DiskEntry::name);
  return entries;
}

std::string DiskStore::FaultOf(const std::string& name) const {
  std::string text;
  const TrustedDirectory directory(directory_, IfMissing::kStayClosed);
  const Found found = directory.Read(name, text);
  if (found == Found::kNothing) return "";  // evicted meanwhile
  if (found == Found::kUntrusted) return "it is a link, or another user can have written it";
  const Decoded decoded = Decode(text);
  if (decoded.fault != nullptr) return decoded.fault;
  return name.ends_with(TailOf(decoded.key_text)) ? "" : "it is another kernel's";
}

size_t DiskStore::Clear() const {
  size_t removed = 0;
  const TrustedDirectory directory(directory_, IfMissing::kStayClosed);
  for (const TrustedDirectory::File& file : directory.List()) {
    if (!LabelOf(file.name).empty()) removed += directory.Remove(file.name) ? 1 : 0;
    if (IsOrphan(file)) directory.Remove(file.name);
  }
  return removed;
}

}  // namespace fp8gemm
