// SPDX-License-Identifier: Apache-2.0
// From the source of a kernel to its machine code and to one loaded kernel per process.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "driver/module.h"
#include "jit/backend.h"
#include "jit/nvrtc.h"

namespace fp8gemm {

/// A kernel that can be compiled.
struct KernelSpec {
  std::string key;     // of its configuration: tells kernels apart, names files of the cache
  std::string name;    // of the entry point
  std::string source;  // the few lines that instantiate it; the rest is in EmbeddedHeaders()
  unsigned threads = 0;
  unsigned smem_bytes = 0;
};

/// csrc/shared and csrc/kernels as text, under the names their includes use.
std::span<const HeaderText> EmbeddedHeaders();

/// SHA-256 over all embedded headers, computed when the extension was built.
std::string_view EmbeddedHeadersDigest();

std::vector<std::string> NvrtcOptions();

/// The machine code for sm_90a, from the cache of the process or compiled now.
/// @throws UnsupportedError  There is no usable NVRTC.
/// @throws CompileError  NVRTC rejected the source.
std::shared_ptr<const std::string> CompiledImage(const KernelSpec& spec);

/// What a backend's driver loads: `CompiledImage`, or the name of a kernel built into the
/// simulator.
std::shared_ptr<const std::string> MakeImage(Backend backend, const KernelSpec& spec);

/// The loaded kernel that all call sites with this configuration share for the life of the process.
std::shared_ptr<LoadedKernel> SharedKernel(Backend backend, const KernelSpec& spec,
                                           std::shared_ptr<const std::string> image);

}  // namespace fp8gemm
