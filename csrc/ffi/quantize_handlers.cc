// SPDX-License-Identifier: Apache-2.0
// Handlers of the custom call `jax_fp8gemm.quantize.v1`, for every layout.
// Called by XLA, registered by jax_fp8gemm/_src/native/extension.py;
// calls quantize/quantize_plan.h.
//
// Attributes  batches, rows, columns, num_groups: i64; layout, x_dtype, dtype, scale_format:
//             string. See QuantizeProblem.
// Arguments   x (batches, rows, columns); for swiglu and geglu up, as x, or both as one x of twice
//             as many columns; for float8 its scales (batches, rows, column blocks), rows
//             innermost; where num_groups is not 0 group_sizes (batches, num_groups) int32; for
//             rms_norm factors of rows (batches, rows) and of columns (batches, columns), float32.
// Results     values, scales: see QuantizeProblem. Where scales are per 1x128, rows of the values
//             are innermost, and those up to a multiple of 4 are not written. Layouts of two have
//             values and scales of the transposed one, then of the rows of all batches.
#include "ffi/call.h"
#include "ffi/handlers.h"
#include "ffi/stages.h"
#include "quantize/quantize_key.h"
#include "quantize/quantize_plan.h"

namespace fp8gemm {
namespace {

namespace ffi = xla::ffi;

ffi::DataType ToDataType(XType type) {
  switch (type) {
    case XType::kBF16: return ffi::DataType::BF16;
    case XType::kF16: return ffi::DataType::F16;
    case XType::kF32: return ffi::DataType::F32;
    case XType::kE4M3: return ffi::DataType::F8E4M3FN;
  }
  return ffi::DataType::INVALID;
}

struct QuantizeCall {
  static constexpr const char* kTarget = "jax_fp8gemm.quantize.v1";
  QuantizeProblem problem;

  explicit QuantizeCall(const ffi::Dictionary& attributes) {
    const AttributeReader reader{attributes};
    problem = {.config = NamedQuantizeConfig(reader.Text("layout"), reader.Text("x_dtype"),
                                             reader.Text("dtype"), reader.Text("scale_format")),
               .batches = reader.Number("batches"),
               .rows = reader.Number("rows"),
               .columns = reader.Number("columns"),
               .num_groups = reader.Number("num_groups")};
  }
  QuantizePlan MakePlan(Backend backend) const { return {backend, problem}; }

  static void Run(QuantizePlan& plan, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  CUstream stream) {
    const QuantizeProblem& problem = plan.problem();
    const QuantizeConfig& config = problem.config;
    const bool has_scales = config.x_type == XType::kE4M3;
    const bool has_groups = problem.num_groups != 0;
    const size_t num_factors = config.is_normalized() ? 2 : 0;
    const size_t expected = 1 + size_t{has_scales} + size_t{has_groups} + num_factors;
    const bool has_up = config.is_gated() && args.size() == expected + 1;
    const bool is_joined = config.is_gated() && !has_up;
    Buffers operands(args, expected + size_t{has_up});
    Buffers results(rets, config.has_rows() ? 4 : 2);
    QuantizeParams params{};
    const ffi::DataType x_type = ToDataType(config.x_type);
    params.x =
        operands.Next("x", x_type, is_joined ? problem.joined_extents() : problem.x_extents());
    if (has_up) params.up = operands.Next("up", x_type, problem.x_extents());
    if (has_scales) {
      params.x_scales = static_cast<const float*>(
          operands.Next("x_scales", ffi::DataType::F32, problem.x_scales_extents()));
    }
    if (has_groups) {
      params.group_sizes = static_cast<const int32_t*>(
          operands.Next("group_sizes", ffi::DataType::S32, {problem.batches, problem.num_groups}));
    }
    if (config.is_normalized()) {
      params.row_factors = static_cast<const float*>(
          operands.Next("row factors", ffi::DataType::F32, problem.row_factors_extents()));
      params.column_factors = static_cast<const float*>(
          operands.Next("column factors", ffi::DataType::F32, problem.column_factors_extents()));
    }
    const ffi::DataType type = ToDataType(config.type);
    params.values = results.Next("values", type, problem.values_extents());
    params.scales =
        static_cast<float*>(results.Next("scales", ffi::DataType::F32, problem.scales_extents()));
    if (config.has_rows()) {
      params.row_values = results.Next("row values", type, problem.row_values_extents());
      params.row_scales = static_cast<float*>(
          results.Next("row scales", ffi::DataType::F32, problem.row_scales_extents()));
    }
    plan.Run(params, stream);
  }
};

}  // namespace

CallHandlers QuantizeHandlers() { return HandlersOf<QuantizeCall>(); }

}  // namespace fp8gemm
