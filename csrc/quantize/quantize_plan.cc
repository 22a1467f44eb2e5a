// SPDX-License-Identifier: Apache-2.0
// Text, parameters and grid of the quantize kernels.
#include "quantize/quantize_plan.h"

#include <algorithm>

#include "jit/type_names.h"
#include "quantize/quantize_key.h"
#include "shared/quantize_config.h"

namespace fp8gemm {
namespace {

// Keeps ptxas from spilling to reach an occupancy that bandwidth does not need.
constexpr int kMinCtasPerSm = 2;

// CTAs per SM that are left where each does several tiles.
constexpr int64_t kMinGridCtasPerSm = 8;
constexpr int64_t kMaxTilesPerCta = 8;

// Among groups a CTA first works out which rows are its own: more tiles share that.
int64_t TilesPerCta(const QuantizeProblem& problem, int64_t sm_count) {
  if (!problem.config.is_grouped()) return 1;
  return std::clamp<int64_t>(problem.grid(1) / (kMinGridCtasPerSm * sm_count), 1, kMaxTilesPerCta);
}

// Whether rows of `columns` elements from `address` on consist of vectors of `count`, each at a
// multiple of its size. XLA gives any address that suits the elements: that of a slice, too.
bool InVectors(const void* address, int64_t columns, uint32_t count, uint32_t element_bytes) {
  return columns % count == 0 &&
         reinterpret_cast<uintptr_t>(address) % (uintptr_t{count} * element_bytes) == 0;
}

QuantizeProblem Validated(const QuantizeProblem& problem) {
  ValidateQuantizeProblem(problem);
  return problem;
}

}  // namespace

KernelSource QuantizeKernel(const QuantizeConfig& config) {
  const std::string name = "sm90_" + QuantizeFamily(config);
  // clang-format off: a line of text a line
  const std::string text =
      "#include <fp8_quantize/sm90_quantize.cuh>\n"
      "extern \"C\" __global__ void __launch_bounds__(" +
      std::to_string(kQuantizeThreads) + ", " + std::to_string(kMinCtasPerSm) + ")\n" + name +
      "(const __grid_constant__ fp8gemm::QuantizeParams params) {\n"
      "  fp8gemm::sm90_quantize<fp8gemm::QuantizeConfig{\n"
      "    .layout = " + NamesOf(config.layout).literal + ",\n"
      "    .x_type = " + NamesOf(config.x_type).literal + ",\n"
      "    .type = " + NamesOf(config.type).literal + ",\n"
      "    .pow2 = " + kScaleFormats[size_t{config.pow2}].literal + ",\n"
      "  }>(params);\n}\n";
  // clang-format on
  return {.key = QuantizeKey(config),
          .name = name,
          .text = text,
          .threads = kQuantizeThreads,
          .smem_bytes = quantize_smem_bytes(config)};
}

QuantizePlan::QuantizePlan(Backend backend, const QuantizeProblem& problem)
    : problem_(Validated(problem)),
      kernel_(Kernel::Shared(backend, QuantizeKernel(problem.config))) {}

void QuantizePlan::Run(QuantizeParams params, CUstream stream) {
  const Kernel::Loaded& loaded = kernel_.Load();
  const int64_t tiles_per_cta = TilesPerCta(problem_, loaded.sm_count);
  const QuantizeConfig& config = problem_.config;
  const int64_t columns = problem_.columns;
  const int64_t values_columns = config.is_transposed() ? problem_.out_columns() : columns;
  const uint32_t x_bytes = element_bytes(config.x_type);
  const bool is_joined = config.is_gated() && params.up == nullptr;
  if (is_joined) params.up = static_cast<const uint8_t*>(params.x) + columns * x_bytes;
  params.rows = problem_.rows;
  params.columns = columns;
  params.batches = problem_.batches;
  params.x_pitch = is_joined ? 2 * columns : columns;
  params.num_groups = problem_.num_groups;
  params.out_columns = problem_.out_columns();
  params.scale_pitch = problem_.scale_pitch();
  params.row_scale_pitch = problem_.row_scale_pitch();
  params.tiles_per_cta = tiles_per_cta;
  params.x_in_vectors = InVectors(params.x, columns, x_vector(config), x_bytes) &&
                        InVectors(params.up, columns, x_vector(config), x_bytes);
  params.values_in_vectors = InVectors(params.values, values_columns, values_vector(config), 1);
  params.row_values_in_vectors = InVectors(params.row_values, columns, kRowVector, 1);
  params.factors_in_vectors =
      InVectors(params.column_factors, columns, x_vector(config), sizeof(float));
  kernel_.Launch(loaded, problem_.grid(tiles_per_cta), stream, &params);
}

}  // namespace fp8gemm
