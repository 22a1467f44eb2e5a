// SPDX-License-Identifier: Apache-2.0
// Names for Python of what makes and keeps kernels: their text, the compiler's cache, its files.
#pragma once
#include <nanobind/nanobind.h>

namespace fp8gemm {

void DefineKernels(nanobind::module_& module);

}  // namespace fp8gemm
