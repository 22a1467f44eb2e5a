// SPDX-License-Identifier: Apache-2.0
// Launches the kernels of sim_kernels.h through the simulated driver, as the library would.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "checks.h"
#include "driver/driver.h"
#include "sim/options.h"
#include "sim/registry.h"
#include "sim_kernels.h"

extern "C" const fp8gemm::DriverApi* Fp8GemmSimDriver();

namespace sim_test {

inline constexpr uint32_t kLaunchRegisters = 128;

// Memory with the alignment that tensor maps need.
template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count) : bytes_(count * sizeof(T) + kAlignment), count_(count) {}
  T* data() {
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
    return reinterpret_cast<T*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }
  T& operator[](size_t index) { return data()[index]; }
  size_t size() const { return count_; }

 private:
  static constexpr size_t kAlignment = 128;
  std::vector<uint8_t> bytes_;
  size_t count_;
};

struct MapSpec {
  fp8gemm::CUtensorMapDataType type;
  uint32_t elem_bytes;
  void* base;
  uint64_t rows;
  uint64_t columns;
  uint32_t box_rows;
  uint32_t box_columns;
  fp8gemm::CUtensorMapSwizzle swizzle;
};

inline TensorMap Encode(const MapSpec& spec) {
  const uint64_t dims[] = {spec.columns, spec.rows};
  const uint64_t strides[] = {spec.columns * spec.elem_bytes};
  const uint32_t box[] = {spec.box_columns, spec.box_rows};
  const uint32_t element_strides[] = {1, 1};
  fp8gemm::CUtensorMap encoded;
  CHECK(Fp8GemmSimDriver()->cuTensorMapEncodeTiled(
            &encoded, spec.type, 2, spec.base, dims, strides, box, element_strides,
            fp8gemm::CU_TENSOR_MAP_INTERLEAVE_NONE, spec.swizzle,
            fp8gemm::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            fp8gemm::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == fp8gemm::CUDA_SUCCESS);
  TensorMap map;
  std::memcpy(&map, &encoded, sizeof map);
  return map;
}

struct Geometry {
  uint32_t grid;
  uint32_t threads;
  uint32_t cluster;
  uint32_t smem_bytes;
  bool pdl = false;
};

// Launches the registered kernel of `key`; the report is in the driver's last_report().
inline fp8gemm::CUresult Launch(const std::string& key, const Geometry& geometry, void* params) {
  const fp8gemm::DriverApi& api = *Fp8GemmSimDriver();
  const std::string image = "fp8gemm-sim\n" + key + "\n";
  fp8gemm::CUlibrary library;
  fp8gemm::CUkernel kernel;
  fp8gemm::CUfunction function;
  CHECK(api.cuLibraryLoadData(&library, image.data(), nullptr, nullptr, 0, nullptr, nullptr, 0) ==
        fp8gemm::CUDA_SUCCESS);
  CHECK(api.cuLibraryGetKernel(&kernel, library, "kernel") == fp8gemm::CUDA_SUCCESS);
  CHECK(api.cuKernelGetFunction(&function, kernel) == fp8gemm::CUDA_SUCCESS);
  CHECK(api.cuKernelSetAttribute(fp8gemm::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                 static_cast<int>(geometry.smem_bytes), kernel,
                                 0) == fp8gemm::CUDA_SUCCESS);
  fp8gemm::CUlaunchAttribute attributes[2] = {};
  attributes[0].id = fp8gemm::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
  attributes[0].value.clusterDim = {geometry.cluster, 1, 1};
  attributes[1].id = fp8gemm::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  attributes[1].value.programmaticStreamSerializationAllowed = geometry.pdl;
  fp8gemm::CUlaunchConfig config = {};
  config.gridDimX = geometry.grid;
  config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
  config.blockDimX = geometry.threads;
  config.sharedMemBytes = geometry.smem_bytes;
  config.attrs = attributes;
  config.numAttrs = 2;
  void* kernel_params[] = {params};
  const fp8gemm::CUresult result = api.cuLaunchKernelEx(&config, function, kernel_params, nullptr);
  CHECK(api.cuLibraryUnload(library) == fp8gemm::CUDA_SUCCESS);
  return result;
}

// The operands of one pipeline run and the result they must give.
class Problem {
 public:
  static constexpr uint32_t kTiles = 4;
  static constexpr uint32_t kBlocks = 5;
  static constexpr uint32_t kRows = 64 * kTiles;
  static constexpr uint32_t kDepth = 128 * kBlocks;

  explicit Problem(uint32_t cluster)
      : a_(kRows * kDepth), b_(64 * kDepth), scales_(kBlocks * kRows), d_(kRows * 64), factor_(1) {
    // e4m3 codes of -2 to 1.75 in steps that float32 sums exactly.
    constexpr uint8_t kCodes[] = {0xc0, 0xb8, 0xb0, 0x00, 0x30, 0x38, 0x3c, 0x3e};
    for (size_t i = 0; i < a_.size(); ++i) a_[i] = kCodes[(i * 7 + i / kDepth * 3) % 8];
    for (size_t i = 0; i < b_.size(); ++i) b_[i] = kCodes[(i * 5 + i / kDepth) % 8];
    for (size_t i = 0; i < scales_.size(); ++i) scales_[i] = 0.25f * (1 + i % 3);
    factor_[0] = 0.5f;
    params_.a = Encode({fp8gemm::CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, a_.data(), kRows, kDepth, 64,
                        128, fp8gemm::CU_TENSOR_MAP_SWIZZLE_128B});
    params_.b = Encode({fp8gemm::CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, b_.data(), 64, kDepth,
                        64 / cluster, 128, fp8gemm::CU_TENSOR_MAP_SWIZZLE_128B});
    params_.scales = Encode({fp8gemm::CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, scales_.data(), kBlocks,
                             kRows, 1, 64, fp8gemm::CU_TENSOR_MAP_SWIZZLE_NONE});
    params_.d = Encode({fp8gemm::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, d_.data(), kRows, 64, 64, 64,
                        fp8gemm::CU_TENSOR_MAP_SWIZZLE_128B});
    params_.factor = factor_.data();
    params_.tiles = kTiles;
    params_.k_blocks = kBlocks;
    ComputeExpected();
  }

  Params* params() { return &params_; }
  void ClearResult() { std::memset(d_.data(), 0xff, d_.size() * 2); }
  bool IsCorrect() { return std::memcmp(d_.data(), expected_.data(), d_.size() * 2) == 0; }

  // All memory that the kernels may touch.
  void RegisterRanges() {
    const fp8gemm::sim::SimRange ranges[] = {{a_.data(), a_.size()},
                                             {b_.data(), b_.size()},
                                             {scales_.data(), scales_.size() * 4},
                                             {d_.data(), d_.size() * 2},
                                             {factor_.data(), 4}};
    Fp8GemmSimSetGlobalRanges(ranges, std::size(ranges));
  }

 private:
  static float Decode(uint8_t code) {
    const int exponent = code >> 3 & 15;
    const float magnitude = exponent == 0 ? 0.0f : std::ldexp(8.0f + (code & 7), exponent - 10);
    return code < 128 ? magnitude : -magnitude;
  }

  static uint16_t ToBf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }

  void ComputeExpected() {
    std::vector<float> b(b_.size());
    for (size_t i = 0; i < b.size(); ++i) b[i] = Decode(b_[i]);
    expected_.resize(d_.size());
    for (uint32_t row = 0; row < kRows; ++row) {
      std::vector<float> a(kDepth);
      for (uint32_t k = 0; k < kDepth; ++k) a[k] = Decode(a_[row * kDepth + k]);
      for (uint32_t column = 0; column < 64; ++column) {
        float sum = 0;
        for (uint32_t k = 0; k < kDepth; ++k) {
          sum += a[k] * b[column * kDepth + k] * scales_[k / 128 * kRows + row] * factor_[0];
        }
        expected_[row * 64 + column] = ToBf16(sum);
      }
    }
  }

  Buffer<uint8_t> a_;
  Buffer<uint8_t> b_;
  Buffer<float> scales_;  // (kBlocks, kRows)
  Buffer<uint16_t> d_;
  Buffer<float> factor_;
  std::vector<uint16_t> expected_;
  Params params_;
};

}  // namespace sim_test
