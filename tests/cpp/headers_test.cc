// SPDX-License-Identifier: Apache-2.0
// Tests of jit/headers: what a source reaches.
#include "jit/headers.h"

#include <string_view>
#include <vector>

#include "checks.h"

namespace {

using namespace fp8gemm;

constexpr char kSource[] = "#define X 1\n#include <gemm/entry.cuh>\nint main();";
const std::vector<HeaderText> kHeaders = {
    {"gemm/entry.cuh", "#pragma once\n#include <shared/types.h>\n"},
    {"gemm/role.cuh", "// #include <quantize/entry.cuh>\n#include <gemm/entry.cuh>"},
    {"quantize/entry.cuh", "#include <shared/types.h>\n"},
    {"shared/types.h", "#if 0\n#include <gemm/role.cuh>\n#endif\n#include <cstdint>"}};

std::vector<std::string_view> Reached(std::string_view source) {
  std::vector<std::string_view> names;
  for (const HeaderText& header : ReachedHeaders(source, kHeaders)) names.push_back(header.name);
  return names;
}

}  // namespace

int main() {
  // Through one another, round a circle, in branches that are skipped; not in comments.
  const std::vector<std::string_view> want = {"gemm/entry.cuh", "gemm/role.cuh", "shared/types.h"};
  CHECK(Reached(kSource) == want);
  CHECK(Reached("int x;").empty() && Reached("").empty());
}
