// SPDX-License-Identifier: Apache-2.0
// Compiles kernels through the cache of the process, and keeps those that are loaded.
#include "jit/kernel.h"

#include <map>
#include <mutex>
#include <utility>

#include "jit/kernel_cache.h"

namespace fp8gemm {
namespace {

// Everything the machine code depends on, as text.
std::string CacheKey(const KernelSpec& spec) {
  const auto [major, minor] = NvrtcVersion();
  std::string key = "headers " + std::string(EmbeddedHeadersDigest()) + "\nnvrtc " +
                    std::to_string(major) + "." + std::to_string(minor) + ", " + NvrtcIdentity() +
                    "\n";
  for (const std::string& option : NvrtcOptions()) key += "option " + option + "\n";
  return key + spec.source;
}

std::string Compile(const KernelSpec& spec) {
  const CompileRequest request{.source = spec.source,
                               .name = spec.key + ".cu",
                               .options = NvrtcOptions(),
                               .headers = EmbeddedHeaders()};
  return CompileCubin(request).cubin;
}

ImageOrigin OriginOf(Backend backend) {
  if (backend == Backend::kSim) return {.compiler = "this build of the simulator"};
  const auto [major, minor] = NvrtcVersion();
  return {.compiler = "NVRTC " + std::to_string(major) + "." + std::to_string(minor) + " (" +
                      NvrtcPath() + ")",
          .cuda_version = 1000 * major + 10 * minor};
}

// What the simulator's cuLibraryLoadData takes in place of a cubin.
std::string SimImage(const KernelSpec& spec) { return "fp8gemm-sim\n" + spec.key + "\n"; }

}  // namespace

std::vector<std::string> NvrtcOptions() { return {"--gpu-architecture=sm_90a", "--std=c++20"}; }

std::shared_ptr<const std::string> CompiledImage(const KernelSpec& spec) {
  return ProcessKernelCache().GetOrBuild(CacheKey(spec), spec.key, [&] { return Compile(spec); });
}

std::shared_ptr<const std::string> MakeImage(Backend backend, const KernelSpec& spec) {
  if (backend == Backend::kSim) return std::make_shared<const std::string>(SimImage(spec));
  return CompiledImage(spec);
}

std::shared_ptr<LoadedKernel> SharedKernel(Backend backend, const KernelSpec& spec,
                                           std::shared_ptr<const std::string> image) {
  static std::mutex mutex;
  static auto& kernels = *new std::map<std::string, std::shared_ptr<LoadedKernel>>;
  const std::string key = (backend == Backend::kSim ? "sim " : "cuda ") + spec.key;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<LoadedKernel>& kernel = kernels[key];
  if (!kernel) {
    kernel = std::make_shared<LoadedKernel>(Driver(backend), std::move(image), spec.name,
                                            spec.smem_bytes, spec.threads, OriginOf(backend));
  }
  return kernel;
}

}  // namespace fp8gemm
