// SPDX-License-Identifier: Apache-2.0
// Tensor maps, raster order and launch geometry of the 1d2d kernel.
#include "gemm/sm90_fp8_gemm_1d2d.h"

#include <algorithm>
#include <cstring>

#include "runtime/tensor_map.h"
#include "shared/smem_layout.h"

namespace fp8gemm {
namespace {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));
static_assert(alignof(TensorMap) <= alignof(CUtensorMap));

TensorMap Encode(const DriverApi& api, const TensorMapSpec& spec) {
  const CUtensorMap encoded = Encode2d(api, spec);
  TensorMap map;
  std::memcpy(&map, &encoded, sizeof map);
  return map;
}

TensorMapSpec OperandSpec(const char* name, void* base, int64_t rows, const GemmProblem& problem,
                          int64_t k_pitch, uint32_t box_rows) {
  return {.operand = name,
          .type = CU_TENSOR_MAP_DATA_TYPE_UINT8,
          .elem_bytes = 1,
          .base = base,
          .dim0 = static_cast<uint64_t>(problem.k),
          .dim1 = static_cast<uint64_t>(rows),
          .pitch_bytes = static_cast<uint64_t>(k_pitch),
          .box0 = kBlockK,
          .box1 = box_rows,
          .swizzle = CU_TENSOR_MAP_SWIZZLE_128B,
          .l2_promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B};
}

CUtensorMapDataType MapType(OutType type) {
  switch (type) {
    case OutType::kBF16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case OutType::kF16: return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case OutType::kF32: return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  }
  return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

TensorMapSpec OutputSpec(const char* name, void* base, const GemmProblem& problem,
                         const GemmConfig& config, int64_t pitch) {
  const uint32_t swizzle = d_swizzle_bytes(config);
  const uint32_t bytes = element_bytes(config.d_type);
  return {.operand = name,
          .type = MapType(config.d_type),
          .elem_bytes = static_cast<int>(bytes),
          .base = base,
          .dim0 = static_cast<uint64_t>(pitch),
          .dim1 = static_cast<uint64_t>(problem.m),
          .pitch_bytes = static_cast<uint64_t>(pitch) * bytes,
          .box0 = d_box_columns(config),
          .box1 = d_box_rows(config),
          .swizzle = swizzle == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                     : swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                     : CU_TENSOR_MAP_SWIZZLE_32B};
}

// Clusters that run at the same time.
int64_t ActiveClusters(const GemmParams& params, const GemmConfig& config, int num_sms) {
  const int64_t tiles = int64_t{params.cluster_tiles_m} * params.cluster_tiles_n;
  return std::min(tiles, std::max<int64_t>(1, num_sms / config.cluster_size()));
}

// Chooses the group width that makes the active clusters read the fewest distinct operand bytes:
// `width` tiles of the grouped dimension times what fits of the other.
void SetRaster(const GemmConfig& config, int64_t active, GemmParams& params) {
  double best = 0;
  for (const bool along_n : {false, true}) {
    const double rows = double(config.block_m) * config.cluster_m;
    const double columns = double(config.block_n) * config.cluster_n;
    const double minor = along_n ? columns : rows;
    const double major = along_n ? rows : columns;
    const uint32_t minor_tiles = along_n ? params.cluster_tiles_n : params.cluster_tiles_m;
    for (uint32_t width = 1; width <= 32; width *= 2) {
      const uint32_t group = std::min(width, minor_tiles);
      const double traffic = group * minor + double(ceil_div<int64_t>(active, group)) * major;
      if (best != 0 && traffic >= best) continue;
      best = traffic;
      params.raster_width = group;
      params.raster_along_n = along_n;
    }
  }
}

}  // namespace

GemmParams MakeGemmParams(const DriverApi& api, const GemmProblem& problem,
                          const GemmConfig& config, const GemmBuffers& buffers, int num_sms) {
  GemmParams params{};
  const uint32_t k_blocks = ceil_div<int64_t>(problem.k, kBlockK);
  params.a = Encode(api, OperandSpec("a", buffers.a, problem.m, problem, buffers.k_pitch,
                                     config.block_m / config.cluster_n));
  params.b = Encode(api, OperandSpec("b", buffers.b, problem.n, problem, buffers.k_pitch,
                                     config.block_n / config.cluster_m));
  params.sfa = Encode(api, {.operand = "sfa",
                            .type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                            .elem_bytes = 4,
                            .base = buffers.sfa,
                            .dim0 = static_cast<uint64_t>(problem.m),
                            .dim1 = k_blocks,
                            .pitch_bytes = static_cast<uint64_t>(buffers.sfa_pitch) * 4,
                            .box0 = config.block_m,
                            .box1 = 1});
  params.d = Encode(api, OutputSpec("d", buffers.d, problem, config, buffers.d_pitch));
  if (config.accumulate) {
    params.c = Encode(api, OutputSpec("c", buffers.c, problem, config, buffers.d_pitch));
  }
  params.sfb = static_cast<const float*>(buffers.sfb);
  params.m = problem.m;
  params.n = problem.n;
  params.k_blocks = k_blocks;
  params.cluster_tiles_m = ceil_div<int64_t>(problem.m, config.block_m * config.cluster_m);
  params.cluster_tiles_n = ceil_div<int64_t>(problem.n, config.block_n * config.cluster_n);
  SetRaster(config, ActiveClusters(params, config, num_sms), params);
  return params;
}

LaunchGeometry MakeLaunchGeometry(const GemmProblem& problem, const GemmConfig& config,
                                  int num_sms) {
  const int64_t tiles = ceil_div<int64_t>(problem.m, config.block_m * config.cluster_m) *
                        ceil_div<int64_t>(problem.n, config.block_n * config.cluster_n);
  const int64_t clusters =
      std::min(tiles, std::max<int64_t>(1, num_sms / config.cluster_size()));
  return {.grid = static_cast<unsigned>(clusters * config.cluster_size()),
          .block = config.threads(),
          .cluster = config.cluster_size(),
          .smem_bytes = make_smem_layout(config).bytes,
          .pdl = config.pdl};
}

}  // namespace fp8gemm
