// SPDX-License-Identifier: Apache-2.0
// Follows #include lines through texts held in memory.
#include "jit/headers.h"

#include <algorithm>
#include <cstddef>

namespace fp8gemm {
namespace {

void SkipBlanks(std::string_view& text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
}

bool Skip(std::string_view prefix, std::string_view& text) {
  SkipBlanks(text);
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

/// What an #include line names; empty for any other line.
std::string_view IncludedName(std::string_view line) {
  if (!Skip("#", line) || !Skip("include", line)) return {};
  SkipBlanks(line);
  if (!line.starts_with('<') && !line.starts_with('"')) return {};
  line.remove_prefix(1);
  return line.substr(0, line.find_first_of(">\""));
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

std::string HeaderLines(std::span<const HeaderText> headers) {
  std::string lines;
  for (const HeaderText& header : headers) {
    lines.append("header ").append(header.name).append(" ").append(header.digest).append("\n");
  }
  return lines;
}

}  // namespace fp8gemm
