// SPDX-License-Identifier: Apache-2.0
// Handlers of the custom call `jax_fp8gemm.gemm.v1`, for every kind of GEMM.
// Called by XLA, registered by jax_fp8gemm/_src/native/extension.py; calls gemm/gemm_plan.h.
//
// Attributes  m, n, k, num_groups, expected_m, d_pitch, num_sms, sm_limit: i64; kind, scaling,
//             a_dtype, b_dtype, d_dtype, config: string; accumulate, zero_padding, pdl: bool.
//             See GemmProblem; num_sms is what to plan for, sm_limit caps the launch.
// Arguments   a (a rows, k padded to 16), sfa (a rows padded to 4, k_blocks) with rows innermost;
//             b and sfb: 1d2d (b rows, k padded) and (groups * n_blocks, k_blocks); 1d1d as a and
//             sfa; then, where the kind has it, group_data int32; then c (d rows, d_pitch) when
//             accumulating.
// Result      d (d rows, d_pitch); may share its buffer with c.
#include <memory>
#include <string>

#include "driver/tensor_map.h"
#include "ffi/call.h"
#include "ffi/guard.h"
#include "ffi/handlers.h"
#include "ffi/sim_plans.h"
#include "gemm/gemm_plan.h"
#include "gemm/problem.h"

namespace fp8gemm {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kGemmTarget = "jax_fp8gemm.gemm.v1";

// Decoded attributes; comparable, so that the stateless CPU handler can look its plan up.
struct GemmAttributes {
  GemmProblem problem;
  int64_t d_pitch = 0;
  std::string config_key;
};

GemmAttributes DecodeAttributes(const ffi::Dictionary& attributes) {
  const AttributeReader reader{attributes};
  GemmAttributes decoded{.problem = ReadProblem(reader),
                         .d_pitch = reader.Number("d_pitch"),
                         .config_key = reader.Text("config")};
  decoded.problem.pdl = reader.Flag("pdl");
  decoded.problem.sm_limit = static_cast<int>(reader.Number("sm_limit"));
  if (decoded.d_pitch < decoded.problem.n) {
    throw std::invalid_argument("attribute d_pitch must be at least n");
  }
  return decoded;
}

// Runs `plan` on the call's buffers after checking them.
void RunGemm(GemmPlan& plan, int64_t d_pitch, ffi::RemainingArgs args, ffi::AnyBuffer d,
             CUstream stream) {
  const GemmProblem& problem = plan.problem();
  const int64_t k_blocks = ceil_div<int64_t>(problem.k, kBlockK);
  const int64_t k_pitch = align_up(problem.k, kTmaAlignmentBytes);
  const int64_t a_rows = problem.a_rows();
  const int64_t b_rows = problem.b_rows();
  const ffi::DataType d_type = ToDataType(problem.d_type);
  GemmBuffers buffers;
  buffers.k_pitch = k_pitch;
  buffers.sfa_pitch = align_up<int64_t>(a_rows, kScaleAlignment);
  buffers.sfb_pitch = align_up<int64_t>(b_rows, kScaleAlignment);
  buffers.d_pitch = d_pitch;
  const int64_t sfb_rows = problem.scaling == Scaling::k1D1D
                               ? buffers.sfb_pitch
                               : b_rows / problem.n * ceil_div<int64_t>(problem.n, kScaleBlockN);
  const bool has_group_data = problem.group_data_size() > 0;
  Operands operands(args, 4 + size_t{has_group_data} + size_t{problem.accumulate});
  buffers.a = operands.Next("a", ToDataType(problem.a_type), {a_rows, k_pitch});
  buffers.sfa = operands.Next("sfa", ffi::DataType::F32, {buffers.sfa_pitch, k_blocks});
  buffers.b = operands.Next("b", ToDataType(problem.b_type), {b_rows, k_pitch});
  buffers.sfb = operands.Next("sfb", ffi::DataType::F32, {sfb_rows, k_blocks});
  if (has_group_data) {
    buffers.group_data =
        operands.Next("group_data", ffi::DataType::S32, {problem.group_data_size()});
  }
  if (problem.accumulate) {
    buffers.c = operands.Next("c", d_type, {problem.d_rows(), d_pitch});
  }
  buffers.d = CheckedData("d", d, d_type, {problem.d_rows(), d_pitch});
  plan.Run(buffers, stream);
}

// State of one call site in one executable; shared by all devices that run it.
struct GemmState {
  static ffi::TypeId id;
  std::unique_ptr<GemmPlan> plan;
  int64_t d_pitch;
};
ffi::TypeId GemmState::id = {};

ffi::ErrorOr<std::unique_ptr<GemmState>> InstantiateGemm(ffi::Dictionary attributes) noexcept {
  try {
    const GemmAttributes decoded = DecodeAttributes(attributes);
    auto state = std::make_unique<GemmState>();
    state->plan = std::make_unique<GemmPlan>(Backend::kCuda, decoded.problem, decoded.config_key);
    state->d_pitch = decoded.d_pitch;
    return state;
  } catch (...) {
    return ffi::Unexpected(CurrentExceptionAsError(kGemmTarget));
  }
}

ffi::Error InitializeGemm(GemmState* state, ffi::RemainingArgs, ffi::RemainingRets,
                          ffi::Dictionary) {
  return Guard(kGemmTarget, [&] {
    state->plan->Prepare();
    return ffi::Error::Success();
  });
}

ffi::Error ExecuteGemm(GemmState* state, CUstream stream, ffi::RemainingArgs args,
                       ffi::Result<ffi::AnyBuffer> d, ffi::Dictionary) {
  return Guard(kGemmTarget, [&] {
    RunGemm(*state->plan, state->d_pitch, args, *d, stream);
    return ffi::Error::Success();
  });
}

ffi::Error SimExecuteGemm(ffi::RemainingArgs args, ffi::Result<ffi::AnyBuffer> d,
                          ffi::Dictionary attributes) {
  return Guard(kGemmTarget, [&] {
    const GemmAttributes decoded = DecodeAttributes(attributes);
    const auto& [problem, d_pitch, config_key] = decoded;
    const auto plan = SimPlan<GemmPlan>(problem.ToString() + " " + config_key, problem, config_key);
    RunGemm(*plan, d_pitch, args, *d, nullptr);
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_TypeId* GemmStateTypeId() { return &GemmState::id; }

const XLA_FFI_TypeInfo* GemmStateTypeInfo() {
  static const XLA_FFI_TypeInfo info = ffi::MakeTypeInfo<GemmState>();
  return &info;
}

}  // namespace fp8gemm

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    Fp8GemmInstantiate, fp8gemm::InstantiateGemm,
    xla::ffi::Ffi::Bind<xla::ffi::ExecutionStage::kInstantiate>().Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(Fp8GemmInitialize, fp8gemm::InitializeGemm,
                              xla::ffi::Ffi::Bind<xla::ffi::ExecutionStage::kInitialize>()
                                  .Ctx<fp8gemm::CallState<fp8gemm::GemmState>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(Fp8GemmExecute, fp8gemm::ExecuteGemm,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<fp8gemm::CallState<fp8gemm::GemmState>>()
                                  .Ctx<xla::ffi::PlatformStream<fp8gemm::CUstream>>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attrs(),
                              {xla::ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    Fp8GemmSimExecute, fp8gemm::SimExecuteGemm,
    xla::ffi::Ffi::Bind().RemainingArgs().Ret<xla::ffi::AnyBuffer>().Attrs());
