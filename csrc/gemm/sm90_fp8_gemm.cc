// SPDX-License-Identifier: Apache-2.0
// The kernels' text, tensor maps, raster order and grid.
#include "gemm/sm90_fp8_gemm.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "driver/tensor_map.h"
#include "gemm/config_key.h"
#include "gemm/kinds.h"
#include "jit/type_names.h"
#include "shared/smem_layout.h"

namespace fp8gemm {
namespace {

// With names, so that a field that is added to GemmConfig cannot shift the others unnoticed.
std::string Field(const char* name, uint32_t value) {
  return std::string("    .") + name + " = " + std::to_string(value) + ",\n";
}

std::string Field(const char* name, const char* value) {
  return std::string("    .") + name + " = " + value + ",\n";
}

std::string KernelName(const GemmConfig& config) { return "sm90_fp8_gemm_" + FamilyName(config); }

std::string SourceText(const GemmConfig& config) {
  const std::string fields =
      Field("kind", TraitsOf(config.kind).literal) +
      Field("scaling", NamesOf(config.scaling).literal) + Field("block_m", config.block_m) +
      Field("block_n", config.block_n) + Field("num_consumers", config.num_consumers) +
      Field("num_stages", config.num_stages) + Field("cluster_m", config.cluster_m) +
      Field("cluster_n", config.cluster_n) + Field("split_k", config.split_k) +
      Field("a_type", NamesOf(config.a_type).literal) +
      Field("b_type", NamesOf(config.b_type).literal) +
      Field("d_type", NamesOf(config.d_type).literal) +
      Field("accumulate", config.accumulate ? "true" : "false") +
      Field("pdl", config.pdl ? "true" : "false");
  return "#define FP8GEMM_ONLY_N " + std::to_string(config.block_n) +
         "\n"
         "#include <fp8_gemm/sm90_fp8_gemm.cuh>\n"
         "extern \"C\" __global__ void __launch_bounds__(" +
         std::to_string(config.threads()) + ", 1)\n" + KernelName(config) +
         "(const __grid_constant__ fp8gemm::GemmParams params) {\n"
         "  fp8gemm::sm90_fp8_gemm<fp8gemm::GemmConfig{\n" +
         fields + "  }>(params);\n}\n";
}

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));
static_assert(alignof(TensorMap) <= alignof(CUtensorMap));

TensorMap Encode(const DriverApi& api, const TensorMapSpec& spec) {
  const CUtensorMap encoded = Encode2d(api, spec);
  TensorMap map;
  std::memcpy(&map, &encoded, sizeof map);
  return map;
}

TensorMapSpec OperandSpec(const char* name, void* base, int64_t rows, const GemmProblem& problem,
                          uint32_t box_rows) {
  return {.operand = name,
          .type = CU_TENSOR_MAP_DATA_TYPE_UINT8,
          .base = base,
          .dim0 = static_cast<uint64_t>(problem.k),
          .dim1 = static_cast<uint64_t>(rows),
          .pitch_bytes = static_cast<uint64_t>(problem.k_pitch()),
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
                         const GemmConfig& config) {
  const uint32_t swizzle = d_swizzle_bytes(config);
  return {.operand = name,
          .type = MapType(config.d_type),
          .base = base,
          .dim0 = static_cast<uint64_t>(problem.d_pitch()),
          .dim1 = static_cast<uint64_t>(problem.d_rows()),
          .pitch_bytes = uint64_t(problem.d_pitch()) * element_bytes(problem.d_type),
          .box0 = d_box_columns(config),
          .box1 = d_box_rows(config),
          .swizzle = swizzle == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                     : swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                     : CU_TENSOR_MAP_SWIZZLE_NONE};
}

TensorMapSpec ScaleSpec(const char* name, void* base, int64_t rows, int64_t k_blocks, int64_t pitch,
                        uint32_t box_rows) {
  return {.operand = name,
          .type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
          .base = base,
          .dim0 = static_cast<uint64_t>(rows),
          .dim1 = static_cast<uint64_t>(k_blocks),
          .pitch_bytes = static_cast<uint64_t>(pitch) * 4,
          .box0 = box_rows,
          .box1 = 1};
}

// Cluster tiles of one output matrix.
int64_t ClusterTilesM(const GemmProblem& problem, const GemmConfig& config) {
  return ceil_div(problem.m, int64_t{config.block_m} * config.cluster_m);
}

int64_t ClusterTilesN(const GemmProblem& problem, const GemmConfig& config) {
  return ceil_div(problem.n, int64_t{config.block_n} * config.cluster_n);
}

// Most cluster tiles a problem can have, whatever the sizes of its groups.
int64_t MaxClusterTiles(const GemmProblem& problem, const GemmConfig& config) {
  const int64_t tiles = ClusterTilesM(problem, config) * ClusterTilesN(problem, config);
  switch (problem.kind) {
    case GemmKind::kDense:
    case GemmKind::kContiguous: return tiles;
    case GemmKind::kMasked:
    case GemmKind::kKGrouped: return tiles * problem.num_groups;
    // Each group, and the zeros past the last one, can end in a tile that it does not fill.
    case GemmKind::kRagged:
      return tiles + (problem.num_groups + 1) * ClusterTilesN(problem, config);
  }
  return tiles;
}

int64_t ActiveClusters(const GemmProblem& problem, const GemmConfig& config, int64_t max_clusters) {
  // With split K each cluster computes one tile and ends (see split_k.cuh), so there may be more
  // clusters than are resident at once.
  if (config.split_k > 1) return MaxClusterTiles(problem, config);
  return std::min(MaxClusterTiles(problem, config), max_clusters);
}

// The clusters walk the tiles in bands, each `width` tiles wide. Chooses direction and width such
// that the `active` clusters, which are at adjacent tiles, read the fewest distinct operand bytes.
void SetRaster(const GemmConfig& config, int64_t active, GemmParams& params) {
  double best = 0;
  for (const bool along_n : {false, true}) {
    const double rows = double(config.block_m) * config.cluster_m;
    const double columns = double(config.block_n) * config.cluster_n;
    const double minor = along_n ? columns : rows;
    const double major = along_n ? rows : columns;
    const uint32_t minor_tiles = along_n ? params.cluster_tiles_n : params.cluster_tiles_m;
    const uint32_t major_tiles = along_n ? params.cluster_tiles_m : params.cluster_tiles_n;
    for (uint32_t width = 1; width <= 32; width *= 2) {
      const uint32_t band = std::min(width, minor_tiles);
      const double traffic = band * minor + double(ceil_div<int64_t>(active, band)) * major;
      if (best != 0 && traffic >= best) continue;
      best = traffic;
      params.raster_along_n = along_n;
      params.raster_width = fast_divisor(band);
      params.band_tiles = fast_divisor(band * major_tiles);
      params.whole_bands = minor_tiles / band;
      params.last_band_width = fast_divisor(max(1u, minor_tiles % band));
    }
  }
}

void EncodeTensorMaps(const DriverApi& api, const GemmProblem& problem, const GemmConfig& config,
                      const GemmBuffers& buffers, GemmParams& params) {
  params.a = Encode(api, OperandSpec("a", buffers.a, problem.a_rows(), problem,
                                     config.block_m / config.cluster_n));
  params.b = Encode(api, OperandSpec("b", buffers.b, problem.b_rows(), problem,
                                     config.block_n / config.cluster_m));
  params.sfa = Encode(api, ScaleSpec("sfa", buffers.sfa, problem.a_rows(), params.k_blocks,
                                     problem.sfa_pitch(), sfa_box_scales(config)));
  if (config.scaling == Scaling::k1D1D) {
    params.sfb = Encode(api, ScaleSpec("sfb", buffers.sfb, problem.n, params.k_blocks,
                                       problem.sfb_pitch(), config.block_n));
  } else {
    params.sfb_blocks = static_cast<const float*>(buffers.sfb);
  }
  params.d = Encode(api, OutputSpec("d", buffers.d, problem, config));
  if (config.accumulate) {
    params.c = Encode(api, OutputSpec("c", buffers.c, problem, config));
  }
}

}  // namespace

KernelSource GemmKernel(const GemmConfig& config) {
  return {.key = ConfigKey(config),
          .name = KernelName(config),
          .text = SourceText(config),
          .threads = config.threads(),
          .smem_bytes = launch_smem_bytes(config),
          .cluster = config.cluster_size(),
          .pdl = config.pdl};
}

GemmParams MakeGemmParams(const DriverApi& api, const GemmProblem& problem,
                          const GemmConfig& config, const GemmBuffers& buffers,
                          int64_t max_clusters) {
  GemmParams params{};
  params.k_blocks = ceil_div<int64_t>(problem.k, kBlockK);
  EncodeTensorMaps(api, problem, config, buffers, params);
  params.d_base = buffers.d;
  params.d_pitch_bytes = uint64_t(problem.d_pitch()) * element_bytes(problem.d_type);
  params.group_data = static_cast<const int32_t*>(buffers.group_data);
  params.num_groups = problem.num_groups;
  params.group_rows = problem.kind == GemmKind::kMasked ? problem.m : 0;
  params.zero_padding = problem.zero_padding;
  params.m = problem.m;
  params.n = problem.n;
  params.cluster_tiles_m = ClusterTilesM(problem, config);
  params.cluster_tiles_n = ClusterTilesN(problem, config);
  const bool is_k_grouped = problem.kind == GemmKind::kKGrouped;
  params.tiles_together =
      fast_divisor(params.cluster_tiles_n * (is_k_grouped ? params.cluster_tiles_m : 1));
  SetRaster(config, ActiveClusters(problem, config, max_clusters), params);
  return params;
}

unsigned Grid(const GemmProblem& problem, const GemmConfig& config, int64_t max_clusters) {
  return ActiveClusters(problem, config, max_clusters) * config.cluster_size();
}

}  // namespace fp8gemm
