// SPDX-License-Identifier: Apache-2.0
// Exception types of the host code; the FFI layer maps them to status codes.
#pragma once
#include <stdexcept>

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
  using std::runtime_error::runtime_error;
};

/// A driver call failed.
///
/// what() has the name of the function, the code and its description, and what the simulator found.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace fp8gemm
