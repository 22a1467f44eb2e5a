// SPDX-License-Identifier: Apache-2.0
// Parameters and geometry of a quantize launch.
#include "quantize/quantize_plan.h"

#include <algorithm>

#include "quantize/quantize_source.h"
#include "shared/quantize_params.h"

namespace fp8gemm {
namespace {

// CTAs per SM that a launch should keep, before one of them does several tiles.
constexpr int64_t kMinWaves = 8;
constexpr int64_t kMaxTilesPerCta = 8;

// Among groups a CTA first works out which rows are its own: more tiles share that.
int64_t TilesPerCta(const QuantizeProblem& problem, int64_t sm_count) {
  if (!problem.config.is_grouped()) return 1;
  return std::clamp<int64_t>(problem.grid(1) / (kMinWaves * sm_count), 1, kMaxTilesPerCta);
}

// Whether rows of `columns` elements from `address` on consist of vectors of `count`, each at a
// multiple of its size. XLA gives any address that suits the elements: that of a slice, too.
bool InVectors(const void* address, int64_t columns, uint32_t count, uint32_t element_bytes) {
  return columns % count == 0 &&
         reinterpret_cast<uintptr_t>(address) % (uintptr_t{count} * element_bytes) == 0;
}

KernelSource KernelOf(const QuantizeProblem& problem) {
  ValidateQuantizeProblem(problem);
  return QuantizeKernel(problem.config);
}

}  // namespace

QuantizePlan::QuantizePlan(Backend backend, const QuantizeProblem& problem)
    : problem_(problem), kernel_(Kernel::Shared(backend, KernelOf(problem))) {}

void QuantizePlan::Run(const QuantizeBuffers& buffers, CUstream stream) {
  const Kernel::OnDevice& loaded = kernel_.Load();
  const int64_t tiles_per_cta = TilesPerCta(problem_, loaded.sm_count);
  const QuantizeConfig& config = problem_.config;
  const int64_t values_columns = config.is_transposed() ? problem_.out_columns() : problem_.columns;
  const uint32_t x_bytes = element_bytes(config.x_type);
  const bool is_joined = config.is_gated() && buffers.up == nullptr;
  const void* const up =
      is_joined ? static_cast<const uint8_t*>(buffers.x) + problem_.columns * x_bytes : buffers.up;
  QuantizeParams params{
      .x = buffers.x,
      .up = up,
      .row_factors = static_cast<const float*>(buffers.row_factors),
      .column_factors = static_cast<const float*>(buffers.column_factors),
      .x_scales = static_cast<const float*>(buffers.x_scales),
      .group_sizes = static_cast<const int32_t*>(buffers.group_sizes),
      .values = buffers.values,
      .scales = static_cast<float*>(buffers.scales),
      .row_values = buffers.row_values,
      .row_scales = static_cast<float*>(buffers.row_scales),
      .rows = static_cast<uint32_t>(problem_.rows),
      .columns = static_cast<uint32_t>(problem_.columns),
      .batches = static_cast<uint32_t>(problem_.batches),
      .x_pitch = static_cast<uint32_t>(is_joined ? 2 * problem_.columns : problem_.columns),
      .num_groups = static_cast<uint32_t>(problem_.num_groups),
      .out_columns = static_cast<uint32_t>(problem_.out_columns()),
      .scale_pitch = static_cast<uint32_t>(problem_.scale_pitch()),
      .row_scale_pitch = static_cast<uint32_t>(problem_.row_scale_pitch()),
      .tiles_per_cta = static_cast<uint32_t>(tiles_per_cta),
      .x_in_vectors = InVectors(buffers.x, problem_.columns, x_vector(config), x_bytes) &&
                      InVectors(up, problem_.columns, x_vector(config), x_bytes),
      .values_in_vectors = InVectors(buffers.values, values_columns, values_vector(config), 1),
      .row_values_in_vectors = InVectors(buffers.row_values, problem_.columns, kRowVector, 1),
      .factors_in_vectors =
          InVectors(buffers.column_factors, problem_.columns, x_vector(config), sizeof(float))};
  const LaunchGeometry geometry{.grid = static_cast<unsigned>(problem_.grid(tiles_per_cta))};
  kernel_.Launch(loaded, geometry, stream, &params);
}

}  // namespace fp8gemm
