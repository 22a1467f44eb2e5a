// SPDX-License-Identifier: Apache-2.0
// What tells one build of a loaded library from another of the same version.
#pragma once
#include <string>

namespace fp8gemm {

/// Identity of the library that holds the code at `address`.
///
/// The linker's build id, a hash of the library's contents, which is the same wherever the library
/// is installed: "build-id feebac3b...". A library that was linked without one is known by
/// the size and the time of its file at `path`.
std::string BuildIdentity(const void* address, const std::string& path);

}  // namespace fp8gemm
