// SPDX-License-Identifier: Apache-2.0
// QuantizeParams: the single argument of the quantize kernels.
#pragma once
#include <shared/types.h>

namespace fp8gemm {

struct QuantizeParams {
  const void* x;   // (batches, rows, columns), row-major
  const void* up;  // gated: as x
  // Normalized: (batches, rows) and (batches, columns).
  const float* row_factors;
  const float* column_factors;
  const float* x_scales;  // kE4M3: (batches, ceil(columns / 128), rows)
  // Grouped, and along rows where num_groups is not 0: (batches, num_groups). Trusted for nothing:
  // clamped.
  const int32_t* group_sizes;
  void* values;  // kRows, kBlocks: as x; otherwise (batches, columns, out_columns)
  // kRows: (ceil(columns / 128), scale_pitch); kBlocks: (batches, ceil(rows / 128),
  // ceil(columns / 128)); otherwise (batches, ceil(out_columns / 128), scale_pitch).
  float* scales;
  // Layouts that have kRows too: its values, as x, and (ceil(columns / 128), row_scale_pitch).
  void* row_values;
  float* row_scales;
  uint32_t rows;  // of one matrix
  uint32_t columns;
  uint32_t batches;
  uint32_t x_pitch;  // along rows: elements from one row of x and of up to the next
  uint32_t num_groups;
  uint32_t out_columns;  // transposed: of the result
  uint32_t scale_pitch;  // floats from one block to the next; a multiple of 4
  uint32_t row_scale_pitch;
  uint32_t tiles_per_cta;  // transposed: column tiles that a CTA does one after the other
  // Whether every access of the array is of a whole vector at a multiple of its size.
  uint32_t x_in_vectors;
  uint32_t values_in_vectors;
  uint32_t row_values_in_vectors;
  uint32_t factors_in_vectors;  // column_factors
};

}  // namespace fp8gemm
