// SPDX-License-Identifier: Apache-2.0
// Calls cuTensorMapEncodeTiled, which checks its own rules.
#include "driver/tensor_map.h"

#include <stdexcept>
#include <string>

#include "driver/error.h"

namespace fp8gemm {

void CheckExtent(const char* name, int64_t value, int64_t most) {
  if (value < 1 || value > most) {
    throw UnsupportedError(std::string(name) + " must be from 1 to " + std::to_string(most) +
                           ", got " + std::to_string(value));
  }
}

CUtensorMap Encode2d(const DriverApi& api, const TensorMapSpec& spec) {
  const uint64_t address = reinterpret_cast<uintptr_t>(spec.base);
  if (address == 0 || address % kTmaAlignmentBytes != 0) {
    const char* const rule =
        address == 0 ? "not be null"
                     : "be a multiple of 16 bytes, also of a slice that XLA passes where "
                       "it lies (see docs/models.md, Layers under lax.scan)";
    throw std::invalid_argument("tensor map of " + std::string(spec.operand) + ": base must " +
                                rule + ", got " + std::to_string(address));
  }
  const uint64_t dims[] = {spec.dim0, spec.dim1};
  const uint64_t strides_bytes[] = {spec.pitch_bytes};  // dimension 0 is contiguous by definition
  const uint32_t box[] = {spec.box0, spec.box1};
  const uint32_t element_strides[] = {1, 1};
  CUtensorMap map{};
  const CUresult result =
      api.cuTensorMapEncodeTiled(&map, spec.type, 2, spec.base, dims, strides_bytes, box,
                                 element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, spec.swizzle,
                                 spec.l2_promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    Check(api, result, (std::string("cuTensorMapEncodeTiled of ") + spec.operand).c_str());
  }
  return map;
}

}  // namespace fp8gemm
