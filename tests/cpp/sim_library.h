// SPDX-License-Identifier: Apache-2.0
// For programs whose only argument is the path of the simulator's library.
#pragma once
#include "checks.h"
#include "driver/driver.h"

/// Has `fp8gemm::SimDriver()` load the library that `main` was given.
inline void TakeSimLibrary(int argc, char** argv) {
  if (argc != 2) checks::Fail("usage", 0, "needs the simulator's library");
  fp8gemm::SetSimLibraryPath(argv[1]);
}
