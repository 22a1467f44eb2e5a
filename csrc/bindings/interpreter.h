// SPDX-License-Identifier: Apache-2.0
// The GIL, of an interpreter that may be ending.
//
// A daemon thread that wants the GIL of an ending interpreter is ended by an exception, which C++
// cannot let pass: the process aborts. So such threads stop for good instead, as all do from Python
// 3.14 on, and the end waits for those that are about to have the GIL.
#pragma once
#include <Python.h>

namespace fp8gemm {

/// Lets go of the GIL for a scope.
class WithoutGil {
 public:
  WithoutGil();
  ~WithoutGil();
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  bool is_counted_;
  PyThreadState* state_;
};

/// Holds the GIL for a scope, on any thread, unless the interpreter is ending.
class WithGil {
 public:
  WithGil();
  ~WithGil();
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;

  bool is_held() const { return is_held_; }

 private:
  bool is_held_;
  PyGILState_STATE state_ = {};
};

/// To be called when the interpreter begins to end: stops what runs, and threads as said above.
void EndInterpreter();

}  // namespace fp8gemm
