// SPDX-License-Identifier: Apache-2.0
// Checks for the small C++ tests: print what failed and where, and exit with 1.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <string>

#if defined(__SANITIZE_THREAD__)
// Threads that share an exception count their references in libstdc++, which is not instrumented;
// nor is NVRTC.
extern "C" __attribute__((used)) inline const char* __tsan_default_suppressions() {
  return "race:std::logic_error::~logic_error\nrace:MessageOf<\nrace:libnvrtc.so\n";
}
#elif defined(__SANITIZE_ADDRESS__)
// A launch that is stopped leaves for good what is on the stacks of its threads.
extern "C" __attribute__((used)) inline const char* __lsan_default_suppressions() {
  return "leak:ThreadMain\n";
}
#endif

namespace checks {

[[noreturn]] inline void Fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  std::exit(1);
}

/// Message of the exception of type `Error` that `action` throws; fails on any other outcome.
template <typename Error, typename Action>
std::string MessageOf(const char* file, int line, Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  } catch (const std::exception& error) {
    Fail(file, line, std::string("an exception of another type: ") + error.what());
  }
  Fail(file, line, "no exception");
}

inline void Contains(const char* file, int line, const std::string& text, const char* part) {
  if (text.find(part) == std::string::npos) {
    Fail(file, line, "'" + std::string(part) + "' is not in: " + text);
  }
}

}  // namespace checks

#define CHECK(condition) \
  ((condition) ? void() : checks::Fail(__FILE__, __LINE__, "is false: " #condition))
#define CHECK_CONTAINS(text, part) checks::Contains(__FILE__, __LINE__, text, part)
#define CHECK_THROWS(Error, action) checks::MessageOf<Error>(__FILE__, __LINE__, [&] { action; })
