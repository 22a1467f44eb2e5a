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
#include <memory>

#include "ffi/call.h"
#include "ffi/guard.h"
#include "ffi/handlers.h"
#include "ffi/sim_plans.h"
#include "jit/type_names.h"
#include "quantize/quantize_plan.h"

namespace fp8gemm {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kQuantizeTarget = "jax_fp8gemm.quantize.v1";

QuantizeProblem DecodeProblem(const ffi::Dictionary& attributes) {
  const AttributeReader reader{attributes};
  return {.config = {.layout = ParseQuantizeLayout(reader.Text("layout")),
                     .x_type = ParseXType(reader.Text("x_dtype")),
                     .type = ParseFp8Type(reader.Text("dtype")),
                     .pow2 = ParseScaleFormat(reader.Text("scale_format"))},
          .batches = reader.Number("batches"),
          .rows = reader.Number("rows"),
          .columns = reader.Number("columns"),
          .num_groups = reader.Number("num_groups")};
}

ffi::DataType ToDataType(XType type) {
  switch (type) {
    case XType::kBF16: return ffi::DataType::BF16;
    case XType::kF16: return ffi::DataType::F16;
    case XType::kF32: return ffi::DataType::F32;
    case XType::kE4M3: return ffi::DataType::F8E4M3FN;
  }
  return ffi::DataType::INVALID;
}

// Runs `plan` on the call's buffers after checking them.
void RunQuantize(QuantizePlan& plan, ffi::RemainingArgs args, ffi::RemainingRets rets,
                 CUstream stream) {
  const QuantizeProblem& problem = plan.problem();
  const QuantizeConfig& config = problem.config;
  const bool has_scales = config.x_type == XType::kE4M3;
  const bool has_groups = problem.num_groups != 0;
  const size_t num_factors = config.is_normalized() ? 2 : 0;
  const size_t expected = 1 + size_t{has_scales} + size_t{has_groups} + num_factors;
  const bool has_up = config.is_gated() && args.size() == expected + 1;
  const bool is_joined = config.is_gated() && !has_up;
  Operands operands(args, expected + size_t{has_up});
  Results results(rets, config.has_rows() ? 4 : 2);
  QuantizeBuffers buffers;
  const ffi::DataType x_type = ToDataType(config.x_type);
  buffers.x =
      operands.Next("x", x_type, is_joined ? problem.joined_extents() : problem.x_extents());
  if (has_up) buffers.up = operands.Next("up", x_type, problem.x_extents());
  if (has_scales) {
    buffers.x_scales = operands.Next("x_scales", ffi::DataType::F32, problem.x_scales_extents());
  }
  if (has_groups) {
    buffers.group_sizes =
        operands.Next("group_sizes", ffi::DataType::S32, {problem.batches, problem.num_groups});
  }
  if (config.is_normalized()) {
    buffers.row_factors =
        operands.Next("row factors", ffi::DataType::F32, problem.row_factors_extents());
    buffers.column_factors =
        operands.Next("column factors", ffi::DataType::F32, problem.column_factors_extents());
  }
  const ffi::DataType type = ToDataType(config.type);
  buffers.values = results.Next("values", type, problem.values_extents());
  buffers.scales = results.Next("scales", ffi::DataType::F32, problem.scales_extents());
  if (config.has_rows()) {
    buffers.row_values = results.Next("row values", type, problem.row_values_extents());
    buffers.row_scales =
        results.Next("row scales", ffi::DataType::F32, problem.row_scales_extents());
  }
  plan.Run(buffers, stream);
}

// State of one call site in one executable; shared by all devices that run it.
struct QuantizeState {
  static ffi::TypeId id;
  std::unique_ptr<QuantizePlan> plan;
};
ffi::TypeId QuantizeState::id = {};

ffi::ErrorOr<std::unique_ptr<QuantizeState>> InstantiateQuantize(
    ffi::Dictionary attributes) noexcept {
  try {
    auto state = std::make_unique<QuantizeState>();
    state->plan = std::make_unique<QuantizePlan>(Backend::kCuda, DecodeProblem(attributes));
    return state;
  } catch (...) {
    return ffi::Unexpected(CurrentExceptionAsError(kQuantizeTarget));
  }
}

ffi::Error InitializeQuantize(QuantizeState* state, ffi::RemainingArgs, ffi::RemainingRets,
                              ffi::Dictionary) {
  return Guard(kQuantizeTarget, [&] {
    state->plan->Prepare();
    return ffi::Error::Success();
  });
}

ffi::Error ExecuteQuantize(QuantizeState* state, CUstream stream, ffi::RemainingArgs args,
                           ffi::RemainingRets rets, ffi::Dictionary) {
  return Guard(kQuantizeTarget, [&] {
    RunQuantize(*state->plan, args, rets, stream);
    return ffi::Error::Success();
  });
}

ffi::Error SimExecuteQuantize(ffi::RemainingArgs args, ffi::RemainingRets rets,
                              ffi::Dictionary attributes) {
  return Guard(kQuantizeTarget, [&] {
    const QuantizeProblem problem = DecodeProblem(attributes);
    RunQuantize(*SimPlan<QuantizePlan>(problem.ToString(), problem), args, rets, nullptr);
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_TypeId* QuantizeStateTypeId() { return &QuantizeState::id; }

const XLA_FFI_TypeInfo* QuantizeStateTypeInfo() {
  static const XLA_FFI_TypeInfo info = ffi::MakeTypeInfo<QuantizeState>();
  return &info;
}

}  // namespace fp8gemm

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    Fp8QuantizeInstantiate, fp8gemm::InstantiateQuantize,
    xla::ffi::Ffi::Bind<xla::ffi::ExecutionStage::kInstantiate>().Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(Fp8QuantizeInitialize, fp8gemm::InitializeQuantize,
                              xla::ffi::Ffi::Bind<xla::ffi::ExecutionStage::kInitialize>()
                                  .Ctx<fp8gemm::CallState<fp8gemm::QuantizeState>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(Fp8QuantizeExecute, fp8gemm::ExecuteQuantize,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<fp8gemm::CallState<fp8gemm::QuantizeState>>()
                                  .Ctx<xla::ffi::PlatformStream<fp8gemm::CUstream>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attrs(),
                              {xla::ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(Fp8QuantizeSimExecute, fp8gemm::SimExecuteQuantize,
                              xla::ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attrs());
