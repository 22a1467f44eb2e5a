// SPDX-License-Identifier: Apache-2.0
// Tests of jit/headers: what a source reaches, and what changes the key of its kernel.
#include "jit/headers.h"

#include "checks.h"

namespace {

using namespace fp8gemm;

constexpr char kSource[] = "#define X 1\n#include <gemm/entry.cuh>\nint main();";

std::vector<HeaderText> Headers() {
  return {{"gemm/entry.cuh", "#pragma once\n  #  include  <shared/types.h>\n", "1"},
          {"gemm/role.cuh", "// #include <quantize/entry.cuh>\n#include <gemm/entry.cuh>", "2"},
          {"quantize/entry.cuh", "#include <shared/types.h>\n", "3"},
          {"shared/types.h", "#if 0\n#include \"gemm/role.cuh\"\n#endif\n#include <cstdint>", "4"}};
}

std::string Key(const std::vector<HeaderText>& headers) {
  return HeaderLines(ReachedHeaders(kSource, headers));
}

}  // namespace

int main() {
  // Through one another, round a circle, in branches that are skipped; not in comments.
  const std::string key = Key(Headers());
  CHECK(key == "header gemm/entry.cuh 1\nheader gemm/role.cuh 2\nheader shared/types.h 4\n");
  CHECK(ReachedHeaders("int x;", Headers()).empty());
  CHECK(ReachedHeaders("", Headers()).empty());
  for (const HeaderText& changed : Headers()) {
    std::vector<HeaderText> headers = Headers();
    for (HeaderText& header : headers) {
      if (header.name == changed.name) header.digest = "another";
    }
    const bool is_reached = changed.name != "quantize/entry.cuh";
    CHECK((Key(headers) != key) == is_reached);
  }
}
