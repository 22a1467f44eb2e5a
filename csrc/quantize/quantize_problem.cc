// SPDX-License-Identifier: Apache-2.0
// Validation and extents of quantize problems.
#include "quantize/quantize_problem.h"

#include <string>

#include "driver/error.h"
#include "driver/tensor_map.h"
#include "quantize/quantize_key.h"
#include "shared/smem_layout.h"

namespace fp8gemm {
namespace {

int64_t Blocks(int64_t extent) { return ceil_div<int64_t>(extent, kScaleBlock); }

}  // namespace

int64_t QuantizeProblem::out_columns() const {
  if (!config.is_grouped()) return rows;
  return (rows + (kScaleBlock - 1) * num_groups) / kScaleBlock * kScaleBlock;
}

std::array<int64_t, 3> QuantizeProblem::x_scales_extents() const {
  return {batches, rows, Blocks(columns)};
}

std::array<int64_t, 3> QuantizeProblem::values_extents() const {
  if (config.is_transposed()) return {batches, columns, out_columns()};
  return x_extents();
}

std::array<int64_t, 3> QuantizeProblem::scales_extents() const {
  if (config.layout == QuantizeLayout::kBlocks) return {batches, Blocks(rows), Blocks(columns)};
  if (config.is_rows()) return {1, scale_pitch(), Blocks(columns)};
  return {batches, scale_pitch(), Blocks(out_columns())};
}

std::array<int64_t, 3> QuantizeProblem::row_scales_extents() const {
  return {1, row_scale_pitch(), Blocks(columns)};
}

int64_t QuantizeProblem::grid(int64_t tiles_per_cta) const {
  if (config.is_rows()) {
    return ceil_div<int64_t>(batches * ceil_div<int64_t>(rows, kWarpRows) * Blocks(columns),
                             kQuantizeWarps);
  }
  if (!config.is_transposed()) return batches * Blocks(rows) * Blocks(columns);
  const int64_t tiles = ceil_div<int64_t>(columns, tile_columns(config));
  const int64_t blocks = row_blocks(config, static_cast<uint32_t>(out_columns()));
  return batches * blocks * ceil_div(tiles, tiles_per_cta);
}

void ValidateQuantizeProblem(const QuantizeProblem& problem) {
  if (!is_quantizer(problem.config)) {
    throw UnsupportedError("there is no kernel " + QuantizeKey(problem.config));
  }
  CheckExtent("batches", problem.batches);
  CheckExtent("rows", problem.rows);
  CheckExtent("columns", problem.columns);
  const bool needs_groups = problem.config.is_grouped();
  const bool has_groups = needs_groups || problem.config.is_rows();
  if (problem.num_groups < (needs_groups ? 1 : 0) ||
      problem.num_groups > (has_groups ? int64_t{kMaxGroups} : 0)) {
    const std::string range = has_groups ? "from 1 to " + std::to_string(kMaxGroups) : "0";
    throw UnsupportedError("num_groups must be " + range + ", got " +
                           std::to_string(problem.num_groups));
  }
  if (problem.config.is_rows() || problem.config.has_rows()) {
    CheckExtent("the number of rows of all batches", problem.batches * problem.rows);
  }
  if (problem.config.is_gated()) CheckExtent("columns of both factors", 2 * problem.columns);
  CheckExtent("columns of the result", problem.out_columns());
  // Checked before the grid, which is this times blocks of columns: so the product of three extents
  // stays below 2^63.
  CheckExtent("the number of blocks of rows of all batches",
              problem.batches *
                  Blocks(problem.config.is_transposed() ? problem.out_columns() : problem.rows));
  // The kernels number warps in 32 bits.
  CheckExtent("the number of warps", problem.grid(1) * kQuantizeWarps);
}

}  // namespace fp8gemm
