// SPDX-License-Identifier: Apache-2.0
// Exception types of the host code; the FFI layer maps them to status codes.
#pragma once
#include <stdexcept>
#include <string>
#include <utility>

namespace fp8gemm {

/// The machine or the request is outside what the library supports.
///
/// what() says in plain words what was found and what to do about it.
class UnsupportedError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What ran was stopped, see driver/interrupts.h.
class InterruptedError : public std::runtime_error {
 public:
  InterruptedError() : std::runtime_error("interrupted by Ctrl-C") {}
};

/// NVRTC rejected a program.
///
/// what() names the program and holds an excerpt of the log, from its first error on.
class CompileError : public std::runtime_error {
 public:
  CompileError(const std::string& message, std::string log)
      : std::runtime_error(message), log_(std::move(log)) {}

  /// The complete NVRTC log.
  const std::string& log() const { return log_; }

 private:
  std::string log_;
};

/// A driver call failed.
class CudaError : public std::runtime_error {
 public:
  /// @param call  Name of the driver function, e.g. "cuLaunchKernelEx".
  /// @param code  Its CUresult.
  /// @param name  Name of the code, e.g. "CUDA_ERROR_INVALID_VALUE".
  /// @param text  Description of the code, and the simulator's report if it wrote one.
  CudaError(std::string call, int code, std::string name, const std::string& text)
      : std::runtime_error(call + " failed with " + name + " (" + std::to_string(code) +
                           "): " + text),
        call_(std::move(call)),
        code_(code),
        name_(std::move(name)) {}

  const std::string& call() const { return call_; }
  int code() const { return code_; }
  const std::string& name() const { return name_; }

 private:
  std::string call_;
  int code_;
  std::string name_;
};

}  // namespace fp8gemm
