// SPDX-License-Identifier: Apache-2.0
// cuTensorMapEncodeTiled with the rules that the CUDA driver documents.
#include <cstring>

#include "sim/driver_state.h"
#include "sim/tensor_map.h"

namespace fp8gemm::sim {
namespace {

constexpr uint64_t kMaxDim = uint64_t{1} << 31;  // 2^32 until CUDA 13.1, 2^31 in 13.5
constexpr uint64_t kStrideLimitBytes = uint64_t{1} << 40;
constexpr uint32_t kMaxBox = 256;

// 0 for types that this library never passes.
uint32_t ElementBytes(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32: return 4;
    default: return 0;
  }
}

// The first broken rule, with the value that breaks it.
class Rules {
 public:
  void Require(bool holds, const char* rule, uint64_t got) {
    if (holds || !broken_.empty()) return;
    broken_ = "cuTensorMapEncodeTiled: " + std::string(rule) + ", got " + std::to_string(got);
  }
  const std::string& broken() const { return broken_; }

 private:
  std::string broken_;
};

void CheckExtents(Rules& rules, const SimTensorMap& map, const uint32_t* element_strides) {
  const uint64_t row_bytes = uint64_t{map.box[0]} * map.elem_bytes;
  for (uint32_t i = 0; i < map.rank; ++i) {
    rules.Require(map.dims[i] >= 1 && map.dims[i] <= kMaxDim, "a dimension must be 1 to 2^31",
                  map.dims[i]);
    rules.Require(map.box[i] >= 1 && map.box[i] <= kMaxBox, "a box extent must be 1 to 256",
                  map.box[i]);
    rules.Require(element_strides[i] == 1, "element strides must be 1", element_strides[i]);
  }
  for (uint32_t i = 0; i + 1 < map.rank; ++i) {
    const uint64_t stride = map.strides_bytes[i];
    const uint64_t inner_bytes =
        i == 0 ? map.dims[0] * map.elem_bytes : map.dims[i] * map.strides_bytes[i - 1];
    rules.Require(stride % 16 == 0, "a stride must be a multiple of 16 bytes", stride);
    rules.Require(stride < kStrideLimitBytes, "a stride must be less than 2^40 bytes", stride);
    rules.Require(stride >= inner_bytes, "a stride must cover the dimension inside it", stride);
  }
  rules.Require(row_bytes % 16 == 0, "the inner box extent must be a multiple of 16 bytes",
                row_bytes);
  rules.Require(map.swizzle_bytes == 0 || row_bytes <= map.swizzle_bytes,
                "the inner box extent in bytes must fit in the swizzle span", row_bytes);
}

}  // namespace

CUresult EncodeTiled(CUtensorMap* map, CUtensorMapDataType type, uint32_t rank, void* base,
                     const uint64_t* dims, const uint64_t* strides_bytes, const uint32_t* box,
                     const uint32_t* element_strides, CUtensorMapInterleave interleave,
                     CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2_promotion,
                     CUtensorMapFloatOOBfill fill) {
  constexpr uint32_t kSwizzleBytes[] = {0, 32, 64, 128};
  Rules rules;
  const uint64_t address = reinterpret_cast<uintptr_t>(base);
  rules.Require(map != nullptr && reinterpret_cast<uintptr_t>(map) % 64 == 0,
                "the map must be aligned to 64 bytes", reinterpret_cast<uintptr_t>(map));
  rules.Require(rank == 2 || rank == 3, "the rank must be 2 or 3", rank);
  rules.Require(ElementBytes(type) != 0, "the data type must be one the library uses", type);
  rules.Require(base != nullptr && address % 16 == 0, "the base must be aligned to 16 bytes",
                address);
  rules.Require(
      dims != nullptr && strides_bytes != nullptr && box != nullptr && element_strides != nullptr,
      "the arrays must not be null", 0);
  rules.Require(interleave == CU_TENSOR_MAP_INTERLEAVE_NONE, "interleave must be none", interleave);
  rules.Require(swizzle <= CU_TENSOR_MAP_SWIZZLE_128B, "the swizzle must be none, 32B, 64B or 128B",
                swizzle);
  rules.Require(l2_promotion <= CU_TENSOR_MAP_L2_PROMOTION_L2_256B, "unknown L2 promotion",
                l2_promotion);
  rules.Require(fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE, "out-of-bounds fill must be zeros",
                fill);
  if (!rules.broken().empty()) return Fail(CUDA_ERROR_INVALID_VALUE, rules.broken());

  SimTensorMap encoded{};
  encoded.magic = kTensorMapMagic;
  encoded.base = static_cast<uint8_t*>(base);
  encoded.rank = rank;
  encoded.elem_bytes = ElementBytes(type);
  // Within bounds by a rule above. NOLINTNEXTLINE(clang-analyzer-security.ArrayBound)
  encoded.swizzle_bytes = kSwizzleBytes[swizzle];
  for (uint32_t i = 0; i < rank; ++i) {
    encoded.dims[i] = dims[i];
    encoded.box[i] = box[i];
    if (i + 1 < rank) encoded.strides_bytes[i] = strides_bytes[i];
  }
  CheckExtents(rules, encoded, element_strides);
  if (!rules.broken().empty()) return Fail(CUDA_ERROR_INVALID_VALUE, rules.broken());
  CUtensorMap opaque{};
  std::memcpy(&opaque, &encoded, sizeof encoded);
  std::memcpy(static_cast<void*>(map), &opaque, sizeof opaque);  // 64-aligned at least, not 128
  return CUDA_SUCCESS;
}

}  // namespace fp8gemm::sim
