// SPDX-License-Identifier: Apache-2.0
// Finds the build id among the notes of a loaded library, which costs no reading of files.
#include "jit/build_identity.h"

#include <elf.h>
#include <link.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <system_error>

namespace fp8gemm {
namespace {

struct Search {
  const std::string& path;
  std::string build_id;  // hexadecimal; empty where there is none
};

size_t Aligned(size_t bytes, size_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

/// The build id in a segment of notes, or "".
std::string BuildIdIn(const unsigned char* notes, size_t bytes, size_t alignment) {
  static constexpr char kHex[] = "0123456789abcdef";
  size_t at = 0;
  while (at + sizeof(ElfW(Nhdr)) <= bytes) {
    ElfW(Nhdr) note;
    std::memcpy(&note, notes + at, sizeof note);
    const size_t name = at + sizeof note;
    const size_t content = at + Aligned(sizeof note + note.n_namesz, alignment);
    if (content > bytes || note.n_descsz > bytes - content) break;
    at = content + Aligned(note.n_descsz, alignment);
    const bool is_build_id = note.n_type == NT_GNU_BUILD_ID && note.n_namesz == sizeof "GNU" &&
                             std::memcmp(notes + name, "GNU", sizeof "GNU") == 0;
    if (!is_build_id) continue;
    std::string text;
    for (size_t i = 0; i < note.n_descsz; ++i) {
      const unsigned char byte = notes[content + i];
      text += {kHex[byte >> 4], kHex[byte & 15]};
    }
    return text;
  }
  return {};
}

// Called for each library of the process; anything but 0 ends the walk.
int Visit(dl_phdr_info* library, size_t, void* data) {
  auto& search = *static_cast<Search*>(data);
  if (search.path != library->dlpi_name) return 0;
  for (int i = 0; i < library->dlpi_phnum && search.build_id.empty(); ++i) {
    const auto& segment = library->dlpi_phdr[i];
    if (segment.p_type != PT_NOTE) continue;
    search.build_id =
        BuildIdIn(reinterpret_cast<const unsigned char*>(library->dlpi_addr + segment.p_vaddr),
                  segment.p_memsz, segment.p_align == 8 ? 8 : 4);
  }
  return 1;
}

}  // namespace

std::string BuildIdentity(const std::string& path) {
  Search search{path, {}};
  dl_iterate_phdr(&Visit, &search);
  if (!search.build_id.empty()) return "build-id " + search.build_id;
  // What cannot be read is -1, which is no worse than no identity.
  std::error_code error;
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path, error));
  const auto modified = std::filesystem::last_write_time(path, error).time_since_epoch();
  return "file " + std::to_string(bytes) + " bytes, modified " +
         std::to_string(std::chrono::nanoseconds(modified).count()) + " ns";
}

}  // namespace fp8gemm
