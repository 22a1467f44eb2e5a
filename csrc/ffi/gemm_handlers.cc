// SPDX-License-Identifier: Apache-2.0
// Handlers of the custom call `jax_fp8gemm.gemm.v1`, for every kind of GEMM.
// Called by XLA, registered by jax_fp8gemm/_src/native/extension.py; calls gemm/gemm_plan.h.
//
// Attributes  m, n, k, num_groups, expected_m, num_sms, sm_limit: i64; kind, scaling, a_dtype,
//             b_dtype, d_dtype, config: string; accumulate, zero_padding, pdl: bool.
//             See GemmProblem; num_sms is what to plan for, sm_limit caps the launch.
// Arguments   a (a rows, k padded to 16), sfa (a rows padded to 4, k_blocks) with rows innermost;
//             b and sfb: 1d2d (b rows, k padded) and (groups * n_blocks, k_blocks); 1d1d as a and
//             sfa; then, where the kind has it, group_data int32; then c as d when accumulating.
// Result      d (d rows, n padded to 16 bytes); may share its buffer with c.
#include <string>

#include "ffi/call.h"
#include "ffi/handlers.h"
#include "ffi/stages.h"
#include "gemm/gemm_plan.h"
#include "gemm/problem.h"

namespace fp8gemm {
namespace {

namespace ffi = xla::ffi;

struct GemmCall {
  static constexpr const char* kTarget = "jax_fp8gemm.gemm.v1";
  GemmProblem problem;
  std::string config_key;

  explicit GemmCall(const ffi::Dictionary& attributes) {
    const AttributeReader reader{attributes};
    problem = ReadProblem(reader);
    problem.pdl = reader.Flag("pdl");
    problem.sm_limit = reader.Number("sm_limit");
    config_key = reader.Text("config");
  }
  GemmPlan MakePlan(Backend backend) const { return {backend, problem, config_key}; }

  static void Run(GemmPlan& plan, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  CUstream stream) {
    const GemmProblem& problem = plan.problem();
    const int64_t k_blocks = ceil_div<int64_t>(problem.k, kBlockK);
    const int64_t a_rows = problem.a_rows();
    const int64_t b_rows = problem.b_rows();
    const ffi::DataType d_type = ToDataType(problem.d_type);
    GemmBuffers buffers;
    const int64_t sfb_rows = problem.scaling == Scaling::k1D1D
                                 ? problem.sfb_pitch()
                                 : b_rows / problem.n * ceil_div<int64_t>(problem.n, kScaleBlockN);
    const bool has_group_data = problem.group_data_size() > 0;
    Buffers operands(args, 4 + size_t{has_group_data} + size_t{problem.accumulate});
    buffers.a = operands.Next("a", ToDataType(problem.a_type), {a_rows, problem.k_pitch()});
    buffers.sfa = operands.Next("sfa", ffi::DataType::F32, {problem.sfa_pitch(), k_blocks});
    buffers.b = operands.Next("b", ToDataType(problem.b_type), {b_rows, problem.k_pitch()});
    buffers.sfb = operands.Next("sfb", ffi::DataType::F32, {sfb_rows, k_blocks});
    if (has_group_data) {
      buffers.group_data =
          operands.Next("group_data", ffi::DataType::S32, {problem.group_data_size()});
    }
    if (problem.accumulate) {
      buffers.c = operands.Next("c", d_type, {problem.d_rows(), problem.d_pitch()});
    }
    buffers.d = Buffers(rets, 1).Next("d", d_type, {problem.d_rows(), problem.d_pitch()});
    plan.Run(buffers, stream);
  }
};

}  // namespace

CallHandlers GemmHandlers() { return HandlersOf<GemmCall>(); }

}  // namespace fp8gemm
