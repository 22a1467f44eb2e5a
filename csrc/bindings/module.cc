// SPDX-License-Identifier: Apache-2.0
// The extension module jax_fp8gemm._core: names for Python, no logic. Used only by extension.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <csignal>
#include <exception>
#include <stdexcept>

#include "bindings/interpreter.h"
#include "bindings/kernels.h"
#include "driver/device_limits.h"
#include "driver/error.h"
#include "driver/interrupts.h"
#include "driver/tensor_map.h"
#include "ffi/handlers.h"
#include "gemm/candidates.h"
#include "gemm/config_key.h"
#include "gemm/kinds.h"
#include "gemm/problem.h"
#include "gemm/select_config.h"
#include "gemm/sim_kernels.h"
#include "jit/kernel.h"
#include "jit/nvrtc.h"
#include "quantize/quantize_key.h"

namespace nb = nanobind;

namespace fp8gemm {
namespace {

template <typename T>
nb::capsule Capsule(T* pointer) {
  // A constructor, not a cast. NOLINTNEXTLINE(bugprone-casting-through-void)
  return nb::capsule(reinterpret_cast<const void*>(pointer));
}

/// What Python registers for a target: handlers and state for CUDA, a handler for the simulator.
nb::dict RegistrationsOf(const CallHandlers& handlers) {
  nb::dict cuda, state_type, result;
  cuda["instantiate"] = Capsule(handlers.instantiate);
  cuda["initialize"] = Capsule(handlers.initialize);
  cuda["execute"] = Capsule(handlers.execute);
  state_type["type_id"] = Capsule(handlers.type_id);
  state_type["type_info"] = Capsule(handlers.type_info);
  result["cuda"] = cuda;
  result["cuda_state_type"] = state_type;
  result["sim"] = Capsule(handlers.sim_execute);
  return result;
}

nb::dict Registrations() {
  nb::dict result;
  result["gemm"] = RegistrationsOf(GemmHandlers());
  result["quantize"] = RegistrationsOf(QuantizeHandlers());
  return result;
}

nb::dict DescribeConfig(const std::string& key) {
  const GemmConfig config = ParseConfigKey(key);
  nb::dict fields;
  fields["family"] = FamilyName(config);
  fields["kind"] = TraitsOf(config.kind).name;
  fields["scaling"] = NamesOf(config.scaling).name;
  fields["block_m"] = config.block_m;
  fields["block_n"] = config.block_n;
  fields["block_k"] = kBlockK;
  fields["num_consumers"] = config.num_consumers;
  fields["row_slices"] = config.row_slices();
  fields["num_stages"] = config.num_stages;
  fields["cluster_m"] = config.cluster_m;
  fields["cluster_n"] = config.cluster_n;
  fields["split_k"] = config.split_k;
  fields["a_type"] = NamesOf(config.a_type).name;
  fields["b_type"] = NamesOf(config.b_type).name;
  fields["d_type"] = NamesOf(config.d_type).name;
  fields["accumulate"] = config.accumulate;
  fields["pdl"] = config.pdl;
  fields["threads"] = config.threads();
  fields["smem_bytes"] = launch_smem_bytes(config);
  fields["moves_registers"] = config.moves_registers();
  fields["consumer_registers"] = config.consumer_registers();
  fields["producer_registers"] = config.producer_registers();
  fields["scale_blocks_n"] = config.scale_blocks_n();
  fields["simulated"] = IsSimulated(config);
  return fields;
}

nb::dict DescribeCost(const CostEstimate& cost) {
  nb::dict fields;
  fields["tiles"] = cost.tiles;
  fields["tiles_per_cta"] = cost.tiles_per_cta;
  fields["k_blocks"] = cost.k_blocks;
  fields["tensor_cycles_per_k_block"] = cost.tensor_per_k_block;
  fields["smem_cycles_per_k_block"] = cost.smem_per_k_block;
  fields["l2_cycles_per_k_block"] = cost.l2_per_k_block;
  fields["serial_cycles_per_k_block"] = cost.serial_per_k_block;
  fields["load_cycles_per_k_block"] = cost.load_per_k_block;
  fields["cycles_per_k_block"] = cost.k_block;
  fields["tile_overhead_cycles"] = cost.tile_overhead;
  fields["compute_cycles"] = cost.compute;
  fields["hbm_floor_cycles"] = cost.hbm_floor;
  fields["cycles"] = cost.cycles;
  fields["microseconds"] = cost.microseconds;
  return fields;
}

template <typename T>
T FieldOf(const nb::dict& fields, const char* name) {
  const nb::object field = fields[name];
  T value{};
  if (nb::try_cast(field, value)) return value;
  throw std::invalid_argument(std::string(name) + " cannot be " + nb::repr(field).c_str());
}

/// A valid problem from the fields that jax_fp8gemm/_src/native/gemm_problem.py names.
GemmProblem ProblemOf(const nb::dict& fields) {
  struct Reader {
    const nb::dict& fields;
    std::string Text(const char* name) const { return FieldOf<std::string>(fields, name); }
    int64_t Number(const char* name) const { return FieldOf<int64_t>(fields, name); }
    bool Flag(const char* name) const { return FieldOf<bool>(fields, name); }
  };
  const GemmProblem problem = ReadProblem(Reader{fields});
  ValidateProblem(problem);
  return problem;
}

/// Every kind of GEMM by name: what kernels it has, and what divides its work.
nb::dict Kinds() {
  nb::dict result;
  for (const KindTraits& traits : kKinds) {
    nb::list scalings;
    for (const Named<Scaling>& scaling : kScalings) {
      if (HasScaling(traits, scaling.value)) scalings.append(scaling.name);
    }
    nb::dict fields;
    fields["scalings"] = scalings;
    fields["accumulates"] = traits.accumulates;
    fields["group_data"] = traits.group_data == GroupData::kNone     ? "none"
                           : traits.group_data == GroupData::kPerRow ? "rows"
                                                                     : "groups";
    fields["has_group_rows"] = traits.has_group_rows;
    fields["has_group_weights"] = traits.has_group_weights;
    fields["has_group_results"] = traits.has_group_results;
    result[traits.name] = fields;
  }
  return result;
}

/// What problems are held to, whatever their kind.
nb::dict ProblemLimits() {
  nb::dict result;
  result["max_groups"] = kMaxGroups;
  result["max_extent"] = kMaxExtent;
  result["max_num_sms"] = kMaxSms;
  result["block"] = kBlockK;
  result["contiguous_alignment"] = kContiguousAlignment;
  result["tma_alignment_bytes"] = kTmaAlignmentBytes;
  return result;
}

/// Candidates for a problem, best first, as (key, cost) pairs.
nb::list RankedConfigs(const nb::dict& problem, const std::string& backend) {
  const Backend where = ParseBackend(backend);
  nb::list result;
  for (const RankedConfig& ranked : RankConfigs(ProblemOf(problem), where)) {
    result.append(nb::make_tuple(ConfigKey(ranked.config), DescribeCost(ranked.cost)));
  }
  return result;
}

/// The modelled cost of a configuration, a candidate or not.
nb::dict ConfigCost(const nb::dict& problem, const std::string& key) {
  return DescribeCost(EstimateCost(ProblemOf(problem), ParseConfigKey(key)));
}

template <typename Config>
std::vector<std::string> Keys(const std::vector<Config>& configs,
                              std::string (*key_of)(const Config&)) {
  std::vector<std::string> keys;
  for (const Config& config : configs) keys.push_back(key_of(config));
  return keys;
}

/// Key of the kernel for attributes as the custom call has them.
std::string QuantizeKeyOf(const std::string& layout, const std::string& x_dtype,
                          const std::string& dtype, const std::string& scale_format) {
  return QuantizeKey(NamedQuantizeConfig(layout, x_dtype, dtype, scale_format));
}

/// Whether the handler of SIGINT is Python's own, which raises KeyboardInterrupt. A program's own
/// handler may want to go on, say to finish a step.
bool InterruptsStopWork(PyObject* getsignal, PyObject* default_handler) {
  const WithGil gil;
  if (!gil.is_held()) return false;
  // Both are functions in C: a line of Python on the main thread would raise KeyboardInterrupt.
  const nb::object handler = nb::steal(PyObject_CallFunction(getsignal, "i", SIGINT));
  if (!handler.is_valid()) PyErr_Clear();
  return handler.ptr() == default_handler;
}

/// Makes KeyboardInterrupt of InterruptedError. Not to leave it to the handler of SIGINT, whose
/// KeyboardInterrupt comes out of whatever Python runs next, and may be lost there.
void RaiseInterrupt(const std::exception_ptr& error, void*) {
  try {
    std::rethrow_exception(error);
  } catch (const InterruptedError&) {
    PyErr_SetNone(PyExc_KeyboardInterrupt);
  }
}

void FollowInterruptsOfPython() {
  const nb::module_ signal = nb::module_::import_("_signal");
  // Never released: work may outlive the interpreter.
  PyObject* const getsignal = nb::object(signal.attr("getsignal")).release().ptr();
  PyObject* const handler = nb::object(signal.attr("default_int_handler")).release().ptr();
  SetInterruptRule([=] { return InterruptsStopWork(getsignal, handler); });
}

/// What the CUDA driver says of the first device. Raises if there is no driver, or the device is
/// not Hopper.
nb::dict DeviceInfo() {
  const DriverApi& api = CudaDriver();
  int version = 0;
  Check(api, api.cuDriverGetVersion(&version), "cuDriverGetVersion");
  const DeviceLimits limits = ReadLimits(api, 0);
  nb::dict fields;
  fields["driver_version"] = version;
  fields["name"] = limits.name;
  fields["sm_count"] = limits.sm_count;
  fields["smem_bytes_per_block"] = limits.smem_bytes_per_block;
  fields["compute_capability"] = nb::make_tuple(limits.cc_major, limits.cc_minor);
  return fields;
}

}  // namespace
}  // namespace fp8gemm

NB_MODULE(_core, module) {
  using namespace fp8gemm;
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(&EndInterpreter));
  FollowInterruptsOfPython();
  nb::register_exception_translator(&RaiseInterrupt);
  module.def("registrations", &Registrations);
  module.attr("ffi_api_minor") = XLA_FFI_API_MINOR;
  module.def("kinds", &Kinds);
  module.def("limits", &ProblemLimits);
  module.def("candidate_configs", [] { return Keys(AllCandidates(), &ConfigKey); });
  module.def("quantize_configs", [] { return Keys(AllQuantizeConfigs(), &QuantizeKey); });
  module.def("quantize_key", &QuantizeKeyOf, nb::arg("layout"), nb::arg("x_dtype"),
             nb::arg("dtype"), nb::arg("scale_format"));
  module.def("ranked_configs", &RankedConfigs, nb::arg("problem"), nb::arg("backend"));
  module.def("config_cost", &ConfigCost, nb::arg("problem"), nb::arg("key"));
  module.def("describe_config", &DescribeConfig, nb::arg("key"));
  DefineKernels(module);
  module.def("nvrtc_options", &NvrtcOptions);
  module.def(
      "set_nvrtc_search",
      [](std::string chosen, int major, std::vector<std::string> candidates) {
        SetNvrtcSearch({std::move(chosen), major, std::move(candidates)});
      },
      nb::arg("chosen"), nb::arg("major"), nb::arg("candidates"));
  module.def("nvrtc_version", [] { return nb::make_tuple(Nvrtc().major, Nvrtc().minor); });
  module.def("nvrtc_path", [] { return Nvrtc().path; });
  module.def("set_sim_library", &SetSimLibraryPath, nb::arg("path"));
  module.def("device_info", &DeviceInfo);
}
