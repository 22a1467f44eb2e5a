// SPDX-License-Identifier: Apache-2.0
// Follows #include lines through texts held in memory.
#include "jit/headers.h"

#include <algorithm>
#include <cstddef>

namespace fp8gemm {
namespace {

/// What an #include line names; empty for any other line.
std::string_view IncludedName(std::string_view line) {
  constexpr std::string_view kStart = "#include <";
  if (!line.starts_with(kStart)) return {};
  line.remove_prefix(kStart.size());
  return line.substr(0, line.find('>'));
}

}  // namespace

std::vector<HeaderText> ReachedHeaders(std::string_view source,
                                       std::span<const HeaderText> headers) {
  std::vector<bool> is_reached(headers.size());
  std::vector<std::string_view> unread = {source};
  while (!unread.empty()) {
    std::string_view text = unread.back();
    unread.pop_back();
    while (!text.empty()) {
      const std::string_view name = IncludedName(text.substr(0, text.find('\n')));
      text.remove_prefix(std::min(text.find('\n'), text.size() - 1) + 1);
      for (size_t i = 0; i < headers.size() && !name.empty(); ++i) {
        if (is_reached[i] || headers[i].name != name) continue;
        is_reached[i] = true;
        unread.push_back(headers[i].text);
      }
    }
  }
  std::vector<HeaderText> reached;
  for (size_t i = 0; i < headers.size(); ++i) {
    if (is_reached[i]) reached.push_back(headers[i]);
  }
  return reached;
}

}  // namespace fp8gemm
