// SPDX-License-Identifier: Apache-2.0
// The device sources that the extension holds as text, and which of them one kernel is made of.
#pragma once
#include <span>
#include <string_view>
#include <vector>

#include "jit/nvrtc.h"

namespace fp8gemm {

/// csrc/shared and csrc/kernels as text, under the names their includes use; written when the
/// extension is built (cmake/EmbedSources.cmake).
std::span<const HeaderText> EmbeddedHeaders();

/// Those of `headers` that `source` includes, directly or through one another, in their order.
///
/// Follows every line that begins with "#include <", which all includes of device code do, also in
/// branches that the preprocessor skips: what is compiled is always among them.
std::vector<HeaderText> ReachedHeaders(std::string_view source,
                                       std::span<const HeaderText> headers);

}  // namespace fp8gemm
