// SPDX-License-Identifier: Apache-2.0
// QuantizeProblem: what one call of a quantize kernel computes, and the extents of its results.
#pragma once
#include <array>
#include <cstdint>

#include "shared/quantize_config.h"

namespace fp8gemm {

/// float8 values and scales of `batches` matrices x (rows, columns).
struct QuantizeProblem {
  QuantizeConfig config;
  int64_t batches = 1;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t num_groups = 0;  // of each matrix; along rows 0 where all rows are valid

  /// Columns of the values of a transposed layout: for groups, what the worst sizes can need.
  int64_t out_columns() const;
  /// Floats from one block of scales to the next: rows of the values, padded as TMA wants them.
  int64_t scale_pitch() const {
    return config.is_transposed() ? align_up<int64_t>(columns, kScaleAlignment) : row_scale_pitch();
  }
  /// The same for the rows of all matrices: of kRows, also where a layout has it beside a
  /// transposed one.
  int64_t row_scale_pitch() const { return align_up<int64_t>(batches * rows, kScaleAlignment); }

  /// Extents of the arrays. Where rows are innermost in memory these extents still come first.
  std::array<int64_t, 3> x_extents() const { return {batches, rows, columns}; }
  // Of x and, behind it in each row, up.
  std::array<int64_t, 3> joined_extents() const { return {batches, rows, 2 * columns}; }
  std::array<int64_t, 2> row_factors_extents() const { return {batches, rows}; }
  std::array<int64_t, 2> column_factors_extents() const { return {batches, columns}; }
  std::array<int64_t, 3> x_scales_extents() const;  // (batches, rows, blocks), rows innermost
  std::array<int64_t, 3> values_extents() const;
  std::array<int64_t, 3> scales_extents() const;
  std::array<int64_t, 3> row_values_extents() const { return {1, batches * rows, columns}; }
  std::array<int64_t, 3> row_scales_extents() const;

  /// CTAs of one launch that does `tiles_per_cta` tiles in each.
  int64_t grid(int64_t tiles_per_cta) const;
};

/// @throws UnsupportedError  There is no such kernel, or an extent or the grid is out of range.
void ValidateQuantizeProblem(const QuantizeProblem& problem);

}  // namespace fp8gemm
