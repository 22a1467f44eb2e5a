// SPDX-License-Identifier: Apache-2.0
// Kernels by key, of products and quantizers alike, and the caches that they are kept in.
#include "bindings/kernels.h"

#include <nanobind/stl/string.h>

#include <span>
#include <string>
#include <utility>

#include "bindings/interpreter.h"
#include "gemm/config_key.h"
#include "gemm/sm90_fp8_gemm.h"
#include "jit/headers.h"
#include "jit/kernel_cache.h"
#include "quantize/quantize_key.h"
#include "quantize/quantize_plan.h"

namespace nb = nanobind;

namespace fp8gemm {
namespace {

KernelSource KernelOf(const std::string& key) {
  return IsQuantizeKey(key) ? QuantizeKernel(ParseQuantizeKey(key))
                            : GemmKernel(ParseConfigKey(key));
}

nb::dict HeadersDict(std::span<const HeaderText> headers) {
  nb::dict result;
  for (const HeaderText& header : headers) {
    result[nb::str(header.name.data(), header.name.size())] =
        nb::str(header.text.data(), header.text.size());
  }
  return result;
}

/// The headers that a kernel is made of, by name: all that its cache key depends on.
nb::dict KernelHeaders(const std::string& key) {
  return HeadersDict(ReachedHeaders(KernelOf(key).text, EmbeddedHeaders()));
}

/// The machine code of a configuration, through the cache.
nb::bytes ImageOf(const std::string& key) {
  KernelImage image;
  {
    const WithoutGil released;
    image = Compile(KernelOf(key));
  }
  return nb::bytes(image->data(), image->size());
}

/// Keeps machine code that came from elsewhere on disk, as that of this machine's kernel of a
/// configuration. Returns empty, or why it is not kept.
std::string StoreKernel(const std::string& key, const nb::bytes& image) {
  const KernelSource source = KernelOf(key);
  const std::string content(image.c_str(), image.size());
  const WithoutGil released;
  const auto disk = ProcessKernelCache().Disk();
  return disk != nullptr ? disk->Store(CacheKey(source), source.key, content)
                         : "no kernels are kept on disk";
}

nb::dict CacheCounters() {
  const KernelCache::Counters counters = ProcessKernelCache().GetCounters();
  nb::dict fields;
  fields["memory_hits"] = counters.memory_hits;
  fields["disk_hits"] = counters.disk_hits;
  fields["builds"] = counters.builds;
  fields["corrupt"] = counters.corrupt;
  fields["write_failures"] = counters.write_failures;
  return fields;
}

/// `sink(text)` is called, on whatever thread compiles, when an entry cannot be written to disk.
void SetCacheWarningSink(nb::callable sink) {
  // Never destroyed: the cache outlives the interpreter.
  auto* kept = new nb::callable(std::move(sink));
  ProcessKernelCache().SetWarningSink([kept](const std::string& text) {
    const WithGil gil;
    if (gil.is_held()) (*kept)(text);
  });
}

/// What a function of the cache on disk returns; nothing where no kernels are kept.
template <typename Function>
auto OfDiskCache(Function function) {
  const auto disk = ProcessKernelCache().Disk();
  return disk != nullptr ? function(*disk) : decltype(function(*disk)){};
}

/// Entries as (file name, label, bytes).
nb::list ListDiskCache() {
  nb::list entries;
  for (const DiskEntry& entry : OfDiskCache([](const DiskStore& disk) { return disk.List(); })) {
    entries.append(nb::make_tuple(entry.name, entry.label, entry.file_bytes));
  }
  return entries;
}

/// Why an entry would not be loaded, empty if it would.
std::string DiskEntryFault(const std::string& name) {
  return OfDiskCache([&](const DiskStore& disk) { return disk.FaultOf(name); });
}

}  // namespace

void DefineKernels(nb::module_& module) {
  module.def(
      "kernel_source", [](const std::string& key) { return KernelOf(key).text; }, nb::arg("key"));
  module.def("embedded_headers", [] { return HeadersDict(EmbeddedHeaders()); });
  module.def("kernel_headers", &KernelHeaders, nb::arg("key"));
  module.def(
      "cache_key", [](const std::string& key) { return CacheKey(KernelOf(key)); }, nb::arg("key"));
  module.def(
      "set_cache_directory",
      [](const std::string& path, uint64_t limit_bytes) {
        ProcessKernelCache().SetDirectory(path, limit_bytes);
      },
      nb::arg("path"), nb::arg("limit_bytes") = DiskStore::kNoLimit);
  module.def("set_cache_warning_sink", &SetCacheWarningSink, nb::arg("sink"));
  module.def("disk_cache_refusal",
             [] { return OfDiskCache([](const DiskStore& disk) { return disk.Refusal(); }); });
  module.def("list_disk_cache", &ListDiskCache);
  module.def("disk_entry_fault", &DiskEntryFault, nb::arg("name"));
  module.def("kernel_image", &ImageOf, nb::arg("key"));
  module.def("store_kernel", &StoreKernel, nb::arg("key"), nb::arg("image"));
  module.def("cache_counters", &CacheCounters);
  module.def("clear_memory_cache", [] { ProcessKernelCache().ClearMemory(); });
  module.def("clear_disk_cache",
             [] { return OfDiskCache([](const DiskStore& disk) { return disk.Clear(); }); });
}

}  // namespace fp8gemm
