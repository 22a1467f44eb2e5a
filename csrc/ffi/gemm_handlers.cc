// SPDX-License-Identifier: Apache-2.0
// Handlers of the custom call `jax_fp8gemm.gemm.v1`.
// Called by XLA, registered by jax_fp8gemm/_ffi.py; calls gemm/gemm_plan.h.
//
// Attributes  m, n, k, d_pitch, num_sms, sm_limit: i64; a_dtype, b_dtype, d_dtype, config: string;
//             accumulate, pdl: bool. num_sms is what to plan for, sm_limit caps the launch.
// Arguments   a (m, k), sfa (m_padded, k_blocks) with M innermost, b (n, k), sfb (n_blocks,
//             k_blocks), and c (m, d_pitch) when accumulating.
// Result      d (m, d_pitch); may share its buffer with c.
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "ffi/buffers.h"
#include "ffi/guard.h"
#include "ffi/handlers.h"
#include "gemm/gemm_plan.h"

namespace fp8gemm {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kTarget = "jax_fp8gemm.gemm.v1";

// Decoded attributes; comparable, so that the stateless CPU handler can look its plan up.
struct GemmAttributes {
  GemmProblem problem;
  int64_t d_pitch = 0;
  std::string config_key;
};

template <typename T>
T Attribute(const ffi::Dictionary& attributes, const char* name) {
  ffi::ErrorOr<T> value = attributes.get<T>(name);
  if (!value.has_value()) {
    throw std::invalid_argument(std::string("attribute ") + name + ": " + value.error().message());
  }
  return *value;
}

std::string StringAttribute(const ffi::Dictionary& attributes, const char* name) {
  return std::string(Attribute<std::string_view>(attributes, name));
}

GemmAttributes DecodeAttributes(const ffi::Dictionary& attributes) {
  GemmAttributes decoded;
  GemmProblem& problem = decoded.problem;
  problem.m = Attribute<int64_t>(attributes, "m");
  problem.n = Attribute<int64_t>(attributes, "n");
  problem.k = Attribute<int64_t>(attributes, "k");
  problem.a_type = ParseFp8Type(StringAttribute(attributes, "a_dtype"));
  problem.b_type = ParseFp8Type(StringAttribute(attributes, "b_dtype"));
  problem.d_type = ParseOutType(StringAttribute(attributes, "d_dtype"));
  problem.accumulate = Attribute<bool>(attributes, "accumulate");
  problem.pdl = Attribute<bool>(attributes, "pdl");
  problem.num_sms = static_cast<int>(Attribute<int64_t>(attributes, "num_sms"));
  problem.sm_limit = static_cast<int>(Attribute<int64_t>(attributes, "sm_limit"));
  decoded.d_pitch = Attribute<int64_t>(attributes, "d_pitch");
  decoded.config_key = StringAttribute(attributes, "config");
  if (decoded.d_pitch < problem.n) {
    throw std::invalid_argument("attribute d_pitch must be at least n");
  }
  return decoded;
}

// Runs `plan` on the call's buffers after checking them.
void RunGemm(GemmPlan& plan, int64_t d_pitch, ffi::RemainingArgs args, ffi::AnyBuffer d,
             CUstream stream) {
  const GemmProblem& problem = plan.problem();
  const size_t expected = problem.accumulate ? 5 : 4;
  if (args.size() != expected) {
    throw std::invalid_argument("expected " + std::to_string(expected) + " operands, got " +
                                std::to_string(args.size()));
  }
  const auto arg = [&](size_t i) { return *args.get<ffi::AnyBuffer>(i); };
  ffi::AnyBuffer a = arg(0), sfa = arg(1), b = arg(2), sfb = arg(3);
  const int64_t k_blocks = ceil_div<int64_t>(problem.k, kBlockK);
  const int64_t n_blocks = ceil_div<int64_t>(problem.n, kScaleBlockN);
  const int64_t sfa_pitch = align_up<int64_t>(problem.m, 4);
  // Rows of the operands are padded to 16 bytes; the columns past k are zero.
  const int64_t k_pitch = align_up<int64_t>(problem.k, 16);
  const ffi::DataType d_type = ToDataType(problem.d_type);
  GemmBuffers buffers;
  buffers.a = CheckedData("a", a, ToDataType(problem.a_type), {problem.m, k_pitch});
  buffers.b = CheckedData("b", b, ToDataType(problem.b_type), {problem.n, k_pitch});
  buffers.sfa = CheckedData("sfa", sfa, ffi::DataType::F32, {sfa_pitch, k_blocks});
  buffers.sfb = CheckedData("sfb", sfb, ffi::DataType::F32, {n_blocks, k_blocks});
  buffers.d = CheckedData("d", d, d_type, {problem.m, d_pitch});
  if (problem.accumulate) {
    ffi::AnyBuffer c = arg(4);
    buffers.c = CheckedData("c", c, d_type, {problem.m, d_pitch});
  }
  buffers.k_pitch = k_pitch;
  buffers.sfa_pitch = sfa_pitch;
  buffers.d_pitch = d_pitch;
  plan.Run(buffers, stream);
}

// State of one call site in one executable; shared by all devices that run it.
struct GemmState {
  static ffi::TypeId id;
  std::unique_ptr<GemmPlan> plan;
  int64_t d_pitch;
};
ffi::TypeId GemmState::id = {};

ffi::ErrorOr<std::unique_ptr<GemmState>> Instantiate(ffi::Dictionary attributes) noexcept {
  try {
    const GemmAttributes decoded = DecodeAttributes(attributes);
    auto state = std::make_unique<GemmState>();
    state->plan =
        std::make_unique<GemmPlan>(Backend::kCuda, decoded.problem, decoded.config_key);
    state->d_pitch = decoded.d_pitch;
    return state;
  } catch (...) {
    return ffi::Unexpected(CurrentExceptionAsError(kTarget));
  }
}

ffi::Error Initialize(GemmState* state, ffi::RemainingArgs, ffi::RemainingRets, ffi::Dictionary) {
  return Guard(kTarget, [&] {
    state->plan->Prepare();
    return ffi::Error::Success();
  });
}

ffi::Error Execute(GemmState* state, CUstream stream, ffi::RemainingArgs args,
                   ffi::Result<ffi::AnyBuffer> d, ffi::Dictionary) {
  return Guard(kTarget, [&] {
    RunGemm(*state->plan, state->d_pitch, args, *d, stream);
    return ffi::Error::Success();
  });
}

// Plans of the simulator by what determines them. Never removed: tests use a bounded set.
GemmPlan& SimPlan(const GemmAttributes& attributes) {
  static std::mutex mutex;
  static auto& plans = *new std::map<std::string, std::unique_ptr<GemmPlan>>;
  const std::string key = attributes.problem.ToString() +
                          (attributes.problem.pdl ? " pdl " : " ") + attributes.config_key;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<GemmPlan>& plan = plans[key];
  if (!plan) {
    plan = std::make_unique<GemmPlan>(Backend::kSim, attributes.problem, attributes.config_key);
  }
  return *plan;
}

ffi::Error SimExecute(ffi::RemainingArgs args, ffi::Result<ffi::AnyBuffer> d,
                      ffi::Dictionary attributes) {
  return Guard(kTarget, [&] {
    const GemmAttributes decoded = DecodeAttributes(attributes);
    RunGemm(SimPlan(decoded), decoded.d_pitch, args, *d, nullptr);
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
    Fp8GemmInstantiate, fp8gemm::Instantiate,
    xla::ffi::Ffi::Bind<xla::ffi::ExecutionStage::kInstantiate>().Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(Fp8GemmInitialize, fp8gemm::Initialize,
                              xla::ffi::Ffi::Bind<xla::ffi::ExecutionStage::kInitialize>()
                                  .Ctx<xla::ffi::State<fp8gemm::GemmState>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(Fp8GemmExecute, fp8gemm::Execute,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::State<fp8gemm::GemmState>>()
                                  .Ctx<xla::ffi::PlatformStream<fp8gemm::CUstream>>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attrs(),
                              {xla::ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(Fp8GemmSimExecute, fp8gemm::SimExecute,
                              xla::ffi::Ffi::Bind()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attrs());
