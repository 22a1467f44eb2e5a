// SPDX-License-Identifier: Apache-2.0
// Finds NVRTC with dlopen and wraps its program object.
#include "jit/nvrtc.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>

#include "driver/driver.h"
#include "driver/error.h"
#include "driver/fork_mutex.h"
#include "driver/interrupts.h"
#include "jit/build_identity.h"

namespace fp8gemm {
namespace {

using NvrtcResult = int;
using NvrtcProgram = struct NvrtcProgramHandle*;
constexpr NvrtcResult kNvrtcSuccess = 0;
// The oldest with which the tests compile every kernel and look at its machine code.
constexpr std::pair<int, int> kMinVersion = {12, 9};
constexpr size_t kExcerptBytes = 3000;

// Signatures as in nvrtc.h, which have been the same since CUDA 11.1.
struct NvrtcApi : NvrtcInfo {
  NvrtcResult (*nvrtcVersion)(int* major, int* minor);
  const char* (*nvrtcGetErrorString)(NvrtcResult result);
  NvrtcResult (*nvrtcCreateProgram)(NvrtcProgram* program, const char* source, const char* name,
                                    int num_headers, const char* const* header_texts,
                                    const char* const* header_names);
  NvrtcResult (*nvrtcDestroyProgram)(NvrtcProgram* program);
  NvrtcResult (*nvrtcCompileProgram)(NvrtcProgram program, int num_options,
                                     const char* const* options);
  NvrtcResult (*nvrtcGetCUBINSize)(NvrtcProgram program, size_t* bytes);
  NvrtcResult (*nvrtcGetCUBIN)(NvrtcProgram program, char* cubin);
  NvrtcResult (*nvrtcGetProgramLogSize)(NvrtcProgram program, size_t* bytes);
  NvrtcResult (*nvrtcGetProgramLog)(NvrtcProgram program, char* log);
  // Calls `callback` now and then while it compiles, and stops when that returns 1.
  NvrtcResult (*nvrtcSetFlowCallback)(NvrtcProgram program, int (*callback)(void*, void*),
                                      void* payload);
};

template <typename Function>
bool FindSymbol(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  return function != nullptr;
}

bool FindSymbols(void* library, NvrtcApi& api) {
  return FindSymbol(library, "nvrtcVersion", api.nvrtcVersion) &&
         FindSymbol(library, "nvrtcGetErrorString", api.nvrtcGetErrorString) &&
         FindSymbol(library, "nvrtcCreateProgram", api.nvrtcCreateProgram) &&
         FindSymbol(library, "nvrtcDestroyProgram", api.nvrtcDestroyProgram) &&
         FindSymbol(library, "nvrtcCompileProgram", api.nvrtcCompileProgram) &&
         FindSymbol(library, "nvrtcGetCUBINSize", api.nvrtcGetCUBINSize) &&
         FindSymbol(library, "nvrtcGetCUBIN", api.nvrtcGetCUBIN) &&
         FindSymbol(library, "nvrtcGetProgramLogSize", api.nvrtcGetProgramLogSize) &&
         FindSymbol(library, "nvrtcGetProgramLog", api.nvrtcGetProgramLog) &&
         FindSymbol(library, "nvrtcSetFlowCallback", api.nvrtcSetFlowCallback);
}

// NVRTC opens its builtins by soname at the first compilation, and not every wheel's NVRTC has a
// run path to its own folder. A library that is already in the process is found by soname.
void PreloadBuiltins(const NvrtcApi& api) {
  const size_t slash = api.path.rfind('/');
  if (slash == std::string::npos) return;
  const std::string builtins =
      api.path.substr(0, slash + 1) + "libnvrtc-builtins.so." + api.version;
  dlopen(builtins.c_str(), RTLD_NOW | RTLD_GLOBAL);  // if it is elsewhere, NVRTC may still find it
}

std::string VersionText(std::pair<int, int> version) {
  return std::to_string(version.first) + "." + std::to_string(version.second);
}

void AddReason(const std::string& reason, std::string& reasons) {
  if (reasons.find(reason) != std::string::npos) return;  // a library can be tried twice
  reasons += (reasons.empty() ? "" : "; ") + reason;
}

/// Opens one library; null with a reason appended if it does not do.
std::unique_ptr<const NvrtcApi> TryOpen(const std::string& name, int extra_flags,
                                        std::string& reasons) {
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | extra_flags);
  if (library == nullptr) {
    // With RTLD_NOLOAD this only says that the process has not loaded it.
    if ((extra_flags & RTLD_NOLOAD) == 0) AddReason(LoaderError(), reasons);
    return nullptr;
  }
  auto api = std::make_unique<NvrtcApi>();
  if (!FindSymbols(library, *api) || api->nvrtcVersion(&api->major, &api->minor) != kNvrtcSuccess) {
    AddReason(name + " is not NVRTC", reasons);
    dlclose(library);
    return nullptr;
  }
  Dl_info info = {};
  const bool located = dladdr(reinterpret_cast<const void*>(api->nvrtcVersion), &info) != 0;
  api->path = located && info.dli_fname != nullptr ? info.dli_fname : name;
  const std::pair version = {api->major, api->minor};
  api->version = VersionText(version);
  if (version < kMinVersion) {
    AddReason(api->path + " is NVRTC " + api->version + ", older than " + VersionText(kMinVersion),
              reasons);
    dlclose(library);
    return nullptr;
  }
  api->identity = BuildIdentity(api->path);
  PreloadBuiltins(*api);
  return api;
}

/// "libnvrtc.so.12" for ".../libnvrtc.so.12.9.86": the name under which a process knows it.
std::string Soname(const std::string& path) {
  const std::string file = path.substr(path.rfind('/') + 1);  // npos + 1 is the beginning
  const size_t dots = std::string_view("libnvrtc.so.").size();
  return file.substr(0, file.find('.', dots));
}

std::unique_ptr<const NvrtcApi> FindNvrtc(const NvrtcSearch& search) {
  std::string reasons;
  if (!search.chosen.empty()) {
    auto api = TryOpen(search.chosen, 0, reasons);
    if (api != nullptr) return api;
    throw UnsupportedError("JAX_FP8GEMM_NVRTC names " + search.chosen + ", which cannot be used (" +
                           reasons + "); name an NVRTC " + VersionText(kMinVersion) +
                           " or newer, or unset it.");
  }
  std::vector<std::pair<std::string, int>> attempts;  // with flags for dlopen
  for (const std::string& path : search.candidates) {
    attempts.emplace_back(Soname(path), RTLD_NOLOAD);
  }
  for (const std::string& path : search.candidates) attempts.emplace_back(path, 0);
  const std::string preferred = "libnvrtc.so." + std::to_string(search.major);
  std::ranges::stable_partition(attempts, [&](const auto& attempt) {
    return search.major == 0 || Soname(attempt.first) == preferred;
  });
  for (const auto& [name, extra_flags] : attempts) {
    auto api = TryOpen(name, extra_flags, reasons);
    if (api != nullptr) return api;
  }
  throw UnsupportedError(
      "No NVRTC, the run-time compiler of CUDA, of version " + VersionText(kMinVersion) +
      " or newer was found (" + (reasons.empty() ? "no place to look in" : reasons) +
      "); install one with `pip install --upgrade \"jax[cuda13]\"` or \"jax[cuda12]\", or name " +
      "one with JAX_FP8GEMM_NVRTC.");
}

struct NvrtcState {
  ForkMutex mutex;
  NvrtcSearch search;
  std::unique_ptr<const NvrtcApi> api;  // once set, never changed
};

// Never destroyed: threads of XLA may outlive static destruction.
NvrtcState& nvrtc_state = *new NvrtcState;

const NvrtcApi& Api() {
  const std::lock_guard lock(nvrtc_state.mutex);
  if (nvrtc_state.api == nullptr) nvrtc_state.api = FindNvrtc(nvrtc_state.search);
  return *nvrtc_state.api;
}

class Program {
 public:
  explicit Program(const NvrtcApi& api) : api_(api) {}
  ~Program() {
    if (handle_ != nullptr) api_.nvrtcDestroyProgram(&handle_);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  NvrtcResult Create(const CompileRequest& request) {
    // NVRTC wants C strings; views into embedded text need not end with a zero.
    std::vector<std::string> owned;
    owned.reserve(2 * request.headers.size());
    std::vector<const char*> names;
    std::vector<const char*> texts;
    for (const HeaderText& header : request.headers) {
      names.push_back(owned.emplace_back(header.name).c_str());
      texts.push_back(owned.emplace_back(header.text).c_str());
    }
    return api_.nvrtcCreateProgram(&handle_, request.source.c_str(), request.name.c_str(),
                                   static_cast<int>(names.size()), texts.data(), names.data());
  }

  NvrtcResult Compile(const std::vector<std::string>& options) {
    std::vector<const char*> pointers;
    for (const std::string& option : options) pointers.push_back(option.c_str());
    const auto stops = [](void* self, void*) {
      return WasInterrupted(static_cast<Program*>(self)->mark_) ? 1 : 0;
    };
    const NvrtcResult result = api_.nvrtcSetFlowCallback(handle_, stops, this);
    if (result != kNvrtcSuccess) return result;
    return api_.nvrtcCompileProgram(handle_, static_cast<int>(pointers.size()), pointers.data());
  }

  bool was_interrupted() const { return WasInterrupted(mark_); }

  std::string Log() const {
    std::string log = Text(api_.nvrtcGetProgramLogSize, api_.nvrtcGetProgramLog);
    while (!log.empty() && (log.back() == '\0' || log.back() == '\n')) log.pop_back();
    return log;
  }

  std::string Cubin() const { return Text(api_.nvrtcGetCUBINSize, api_.nvrtcGetCUBIN); }

 private:
  std::string Text(NvrtcResult (*get_size)(NvrtcProgram, size_t*),
                   NvrtcResult (*get)(NvrtcProgram, char*)) const {
    size_t bytes = 0;
    if (handle_ == nullptr || get_size(handle_, &bytes) != kNvrtcSuccess) return {};
    std::string text(bytes, '\0');
    if (bytes != 0 && get(handle_, text.data()) != kNvrtcSuccess) return {};
    return text;
  }

  const NvrtcApi& api_;
  const uint64_t mark_ = WatchInterrupts();
  NvrtcProgram handle_ = nullptr;
};

/// The part of a log a message should show: warnings before the first error only hide it.
std::string Excerpt(const std::string& log) {
  size_t start = std::min(log.find("error"), log.find("fatal"));
  start = start == std::string::npos ? 0 : log.rfind('\n', start) + 1;  // npos + 1 is the beginning
  std::string excerpt = log.substr(start, kExcerptBytes);
  const size_t rest = log.size() - start - excerpt.size();
  if (rest != 0) excerpt += "\n... and " + std::to_string(rest) + " more bytes of log";
  return excerpt;
}

}  // namespace

void SetNvrtcSearch(NvrtcSearch search) {
  const std::lock_guard lock(nvrtc_state.mutex);
  nvrtc_state.search = std::move(search);
}

const NvrtcInfo& Nvrtc() { return Api(); }

std::string CompileCubin(const CompileRequest& request) {
  const NvrtcApi& api = Api();
  Program program(api);
  NvrtcResult result = program.Create(request);
  if (result == kNvrtcSuccess) result = program.Compile(request.options);
  if (result != kNvrtcSuccess && program.was_interrupted()) throw InterruptedError();
  if (result == kNvrtcSuccess) {
    std::string cubin = program.Cubin();
    if (!cubin.empty()) return cubin;
  }
  const std::string log = program.Log();
  throw CompileError(
      "NVRTC " + api.version + " could not compile " + request.name + " (" +
      (result == kNvrtcSuccess ? "it gave no cubin" : api.nvrtcGetErrorString(result)) + ")" +
      (log.empty() ? " and left no log" : ":\n" + Excerpt(log)));
}

}  // namespace fp8gemm
