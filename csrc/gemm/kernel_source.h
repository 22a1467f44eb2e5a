// SPDX-License-Identifier: Apache-2.0
// What NVRTC compiles for a configuration.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/nvrtc.h"
#include "shared/gemm_config.h"

namespace fp8gemm {

/// Name of the kernel in the compiled module, e.g. "sm90_fp8_gemm_1d2d_ragged".
std::string KernelName(const GemmConfig& config);

/// The few lines that instantiate the kernel; everything else is in EmbeddedHeaders().
std::string KernelSource(const GemmConfig& config);

/// csrc/shared and csrc/kernels as text, under the names their includes use.
std::span<const HeaderText> EmbeddedHeaders();

/// SHA-256 over all embedded headers, computed when the extension was built.
std::string_view EmbeddedHeadersDigest();

std::vector<std::string> NvrtcOptions();

/// Everything the machine code depends on, as text: the key of the kernel cache.
std::string KernelCacheKey(const GemmConfig& config);

/// Compiles `config` to a cubin for sm_90a.
/// @throws UnsupportedError  There is no usable NVRTC.
/// @throws CompileError  NVRTC rejected the source.
std::string CompileKernel(const GemmConfig& config);

}  // namespace fp8gemm
