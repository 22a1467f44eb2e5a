// SPDX-License-Identifier: Apache-2.0
// Writing, parsing and enumerating configurations of the quantize kernels.
#include "quantize/quantize_key.h"

#include "driver/error.h"

namespace fp8gemm {
QuantizeConfig NamedQuantizeConfig(const std::string& layout, const std::string& x_dtype,
                                   const std::string& dtype, const std::string& scale_format) {
  return {.layout = ByName("layout", kQuantizeLayouts, layout).value,
          .x_type = ByName("x_dtype", kXTypes, x_dtype).value,
          .type = ByName("dtype", kFp8Types, dtype).value,
          .pow2 = ByName("scale_format", kScaleFormats, scale_format).value};
}

std::string QuantizeFamily(const QuantizeConfig& config) {
  return std::string("quantize_") + NamesOf(config.layout).key;
}

std::string QuantizeKey(const QuantizeConfig& config) {
  return QuantizeFamily(config) + "." + NamesOf(config.x_type).key + "." +
         NamesOf(config.type).key + "." + kScaleFormats[size_t{config.pow2}].key;
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
