// SPDX-License-Identifier: Apache-2.0
// Writing, parsing and enumerating configurations of the quantize kernels.
#include "quantize/quantize_key.h"

#include "driver/error.h"

namespace fp8gemm {
namespace {

constexpr const char* kLayoutNames[] = {
    "rows",          "blocks", "transposed", "kgrouped", "rows_transposed",
    "rows_kgrouped", "swiglu", "geglu",      "gelu",     "rms_norm"};
constexpr const char* kXTypeNames[] = {"bf16", "f16", "f32", "e4m3"};
constexpr const char* kTypeNames[] = {"e4m3", "e5m2"};

}  // namespace

std::string QuantizeFamily(const QuantizeConfig& config) {
  return std::string("quantize_") + kLayoutNames[static_cast<size_t>(config.layout)];
}

std::string QuantizeKey(const QuantizeConfig& config) {
  return QuantizeFamily(config) + "." + kXTypeNames[static_cast<size_t>(config.x_type)] + "." +
         kTypeNames[static_cast<size_t>(config.type)] + (config.pow2 ? ".pow2" : ".f32");
}

bool IsQuantizeKey(const std::string& key) { return key.starts_with("quantize_"); }

QuantizeConfig ParseQuantizeKey(const std::string& key) {
  for (const QuantizeConfig& config : AllQuantizeConfigs()) {
    if (QuantizeKey(config) == key) return config;
  }
  throw UnsupportedError("'" + key + "' is not a quantize kernel; write it as in " +
                         QuantizeKey({}));
}

std::vector<QuantizeConfig> AllQuantizeConfigs() {
  std::vector<QuantizeConfig> configs;
  for_each_quantizer([&](const QuantizeConfig& config) { configs.push_back(config); });
  return configs;
}

}  // namespace fp8gemm
