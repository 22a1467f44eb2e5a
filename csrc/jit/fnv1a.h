// SPDX-License-Identifier: Apache-2.0
// FNV-1a: hashes for file names and against accidents. Not cryptographic, and need not be.
#pragma once
#include <cstdint>
#include <string_view>

namespace fp8gemm {

template <typename Word>
Word Fnv1a(std::string_view text, Word basis, Word prime) {
  Word hash = basis;
  for (const unsigned char byte : text) hash = (hash ^ byte) * prime;
  return hash;
}

inline uint64_t Fnv1a64(std::string_view text) {
  return Fnv1a<uint64_t>(text, 0xcbf29ce484222325u, 0x100000001b3u);
}

}  // namespace fp8gemm
