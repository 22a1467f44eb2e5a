// SPDX-License-Identifier: Apache-2.0
// The quantize kernels by configuration: float8 values and scales of x in one pass over it.
#pragma once
#include <fp8_quantize/quantize_blocks.cuh>
#include <fp8_quantize/quantize_rows.cuh>
#include <fp8_quantize/quantize_transposed.cuh>

namespace fp8gemm {

template <QuantizeConfig kConfig>
FP8GEMM_DEVICE void sm90_quantize(const QuantizeParams& params) {
  if constexpr (kConfig.is_rows()) {
    quantize_rows<kConfig>(params);
  } else if constexpr (kConfig.layout == QuantizeLayout::kBlocks) {
    quantize_blocks<kConfig>(params);
  } else {
    quantize_transposed<kConfig>(params);
  }
}

}  // namespace fp8gemm
