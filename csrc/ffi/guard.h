// SPDX-License-Identifier: Apache-2.0
// The only place that catches exceptions: XLA's FFI shim has no catch of its own.
#pragma once
#include <exception>
#include <string>
#include <utility>

#include "driver/error.h"
#include "xla/ffi/api/ffi.h"

namespace fp8gemm {

/// The ffi::Error for the exception being handled, prefixed with the target's name.
inline xla::ffi::Error CurrentExceptionAsError(const char* target) {
  const std::string prefix = std::string(target) + ": ";
  try {
    throw;
  } catch (const UnsupportedError& error) {
    return xla::ffi::Error(xla::ffi::ErrorCode::kUnimplemented, prefix + error.what());
  } catch (const InterruptedError& error) {
    return xla::ffi::Error(xla::ffi::ErrorCode::kCancelled, prefix + error.what());
  } catch (const std::exception& error) {
    return xla::ffi::Error(xla::ffi::ErrorCode::kInternal, prefix + error.what());
  } catch (...) {
    return xla::ffi::Error(xla::ffi::ErrorCode::kInternal, prefix + "unknown exception");
  }
}

/// Runs a handler body; any exception becomes an error.
template <typename Body>
xla::ffi::Error Guard(const char* target, Body&& body) noexcept {
  try {
    std::forward<Body>(body)();
    return xla::ffi::Error::Success();
  } catch (...) {
    return CurrentExceptionAsError(target);
  }
}

}  // namespace fp8gemm
