// SPDX-License-Identifier: Apache-2.0
// Compiles device source held in memory to a cubin, with an NVRTC found at run time.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fp8gemm {

/// A header that the program includes by `name`, e.g. {"shared/types.h", "..."}.
struct HeaderText {
  std::string_view name;
  std::string_view text;
  std::string_view digest = {};  // of the text; not read when compiling
};

struct CompileRequest {
  std::string source;
  std::string name;                  // of the program in messages, e.g. "sm90_fp8_gemm_1d2d.cu"
  std::vector<std::string> options;  // with that of the architecture
  std::span<const HeaderText> headers;
};

/// Where to look for NVRTC.
struct NvrtcSearch {
  std::string chosen{};  // by the user: this file or none; empty: the best that is found
  int major = 0;         // CUDA major version of jax's plugin, which goes before others; 0: unknown
  std::vector<std::string> candidates{};  // full paths or bare sonames, best first
};

/// Takes effect when NVRTC is first needed.
///
/// Unless one was chosen, those of the plugin's major version are tried first. Among them, and
/// among the others, a candidate whose soname is loaded in the process goes first, as what else the
/// process uses is of its version; then the candidates in their order. Those older than 12.9 are
/// passed over.
void SetNvrtcSearch(NvrtcSearch search);

/// The NVRTC in use.
struct NvrtcInfo {
  int major = 0;
  int minor = 0;
  std::string version;  // "13.5"
  std::string path;     // of its file
  // What tells this build from others of the same version (see BuildIdentity): a patch release
  // makes other machine code under the same number.
  std::string identity;
};

/// Loads it if need be.
///
/// @throws UnsupportedError  No usable NVRTC: what was tried and how to install one.
const NvrtcInfo& Nvrtc();

/// Compiles one program to a cubin. Thread-safe, and parallel calls run in parallel.
///
/// @throws UnsupportedError  As `Nvrtc`.
/// @throws CompileError      NVRTC rejected the program or an option, or failed itself.
std::string CompileCubin(const CompileRequest& request);

}  // namespace fp8gemm
