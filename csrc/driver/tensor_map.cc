// SPDX-License-Identifier: Apache-2.0
// The rules of cuTensorMapEncodeTiled for 2-D maps without interleave, and the call itself.
#include "driver/tensor_map.h"

#include <stdexcept>
#include <string>

#include "driver/error.h"

namespace fp8gemm {
namespace {

constexpr uint64_t kMaxMapExtent = uint64_t{1} << 31;
constexpr uint64_t kPitchLimitBytes = uint64_t{1} << 40;
constexpr uint32_t kMaxBoxExtent = 256;

int ElementBytes(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32: return 4;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 8;
  }
  return 0;
}

uint64_t SwizzleSpanBytes(CUtensorMapSwizzle swizzle) {
  switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_32B: return 32;
    case CU_TENSOR_MAP_SWIZZLE_64B: return 64;
    case CU_TENSOR_MAP_SWIZZLE_128B: return 128;
    case CU_TENSOR_MAP_SWIZZLE_NONE: break;
  }
  return kMaxBoxExtent * uint64_t{8};  // no swizzle: only the box limit applies
}

void Require(bool holds, const TensorMapSpec& spec, const char* rule, uint64_t value) {
  if (holds) return;
  throw std::invalid_argument("tensor map of " + std::string(spec.operand) + ": " + rule +
                              ", got " + std::to_string(value));
}

void CheckSpec(const TensorMapSpec& spec) {
  const uint64_t address = reinterpret_cast<uintptr_t>(spec.base);
  const uint64_t elem_bytes = static_cast<uint64_t>(spec.elem_bytes);
  const uint64_t box_row_bytes = spec.box0 * elem_bytes;
  Require(spec.elem_bytes > 0 && spec.elem_bytes == ElementBytes(spec.type), spec,
          "elem_bytes must be the size of the data type", elem_bytes);
  Require(address != 0, spec, "base must not be null", address);
  Require(address % kTmaAlignmentBytes == 0, spec,
          "base must be a multiple of 16 bytes, also of a slice that XLA passes where it lies (see "
          "docs/models.md, Layers under lax.scan)",
          address);
  Require(spec.dim0 >= 1 && spec.dim0 <= kMaxMapExtent, spec, "dim0 must be in 1..2^31", spec.dim0);
  Require(spec.dim1 >= 1 && spec.dim1 <= kMaxMapExtent, spec, "dim1 must be in 1..2^31", spec.dim1);
  Require(spec.pitch_bytes % kTmaAlignmentBytes == 0, spec, "pitch_bytes must be a multiple of 16",
          spec.pitch_bytes);
  Require(spec.pitch_bytes < kPitchLimitBytes, spec, "pitch_bytes must be less than 2^40",
          spec.pitch_bytes);
  Require(spec.pitch_bytes >= spec.dim0 * elem_bytes, spec,
          "pitch_bytes must be at least a row of dim0 elements", spec.pitch_bytes);
  Require(spec.box0 >= 1 && spec.box0 <= kMaxBoxExtent, spec, "box0 must be in 1..256", spec.box0);
  Require(spec.box1 >= 1 && spec.box1 <= kMaxBoxExtent, spec, "box1 must be in 1..256", spec.box1);
  Require(box_row_bytes % kTmaAlignmentBytes == 0, spec,
          "a row of the box must be a multiple of 16 bytes", box_row_bytes);
  Require(box_row_bytes <= SwizzleSpanBytes(spec.swizzle), spec,
          "a row of the box must fit in the swizzle span", box_row_bytes);
}

}  // namespace

void CheckExtent(const char* name, int64_t value, int64_t most) {
  if (value < 1 || value > most) {
    throw UnsupportedError(std::string(name) + " must be from 1 to " + std::to_string(most) +
                           ", got " + std::to_string(value));
  }
}

CUtensorMap Encode2d(const DriverApi& api, const TensorMapSpec& spec) {
  CheckSpec(spec);
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
