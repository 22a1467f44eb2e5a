// SPDX-License-Identifier: Apache-2.0
// What tells one build of a loaded library from another of the same version.
#pragma once
#include <string>

namespace fp8gemm {

/// Identity of the loaded library whose file, as dladdr names it, is `path`.
///
/// The linker's build id, a hash of the library's contents, which is the same wherever the library
/// is installed: "build-id feebac3b...". A library that was linked without one is known by
/// the size and the time of its file.
std::string BuildIdentity(const std::string& path);

}  // namespace fp8gemm
