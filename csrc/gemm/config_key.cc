// SPDX-License-Identifier: Apache-2.0
// Writing and parsing keys.
#include "gemm/config_key.h"

#include <cstdio>
#include <cstdlib>

#include "driver/error.h"
#include "gemm/candidates.h"
#include "gemm/kinds.h"
#include "jit/type_names.h"

namespace fp8gemm {
namespace {

// The type whose key is `text`; the first type if there is none, which ParseConfigKey notices.
template <typename Type, size_t kCount>
Type ByKey(const Named<Type> (&table)[kCount], const std::string& text) {
  for (const Named<Type>& each : table) {
    if (text == each.key) return each.value;
  }
  return table[0].value;
}

std::string Suffix(const GemmConfig& config) {
  return std::string(config.accumulate ? ".acc" : "") +
         (config.split_k > 1 ? ".split" + std::to_string(config.split_k) : "") +
         (config.pdl ? ".pdl" : "");
}

// Sets kind and scaling; to the last of each if no family has the name, which ParseConfigKey
// notices.
void ParseFamilyName(const std::string& text, GemmConfig& config) {
  for (const Named<Scaling>& scaling : kScalings) {
    for (const KindTraits& traits : kKinds) {
      config.scaling = scaling.value;
      config.kind = traits.value;
      if (FamilyName(config) == text) return;
    }
  }
}

}  // namespace

std::string FamilyName(const GemmConfig& config) {
  return std::string(NamesOf(config.scaling).key) + TraitsOf(config.kind).suffix;
}

std::string ConfigKey(const GemmConfig& config) {
  char text[128];
  std::snprintf(text, sizeof text, "%s.m%un%u.w%u.s%u.c%ux%u.%s.%s.%s", FamilyName(config).c_str(),
                config.block_m, config.block_n, config.num_consumers, config.num_stages,
                config.cluster_m, config.cluster_n, NamesOf(config.a_type).key,
                NamesOf(config.b_type).key, NamesOf(config.d_type).key);
  return text + Suffix(config);
}

GemmConfig ParseConfigKey(const std::string& key) {
  GemmConfig config;
  char family[24] = "", a[8] = "", b[8] = "", d[8] = "", rest[24] = "";
  // NOLINTBEGIN(bugprone-unchecked-string-to-number-conversion): the key is printed again below.
  std::sscanf(key.c_str(), "%23[^.].m%un%u.w%u.s%u.c%ux%u.%7[^.].%7[^.].%7[^.]%23s", family,
              &config.block_m, &config.block_n, &config.num_consumers, &config.num_stages,
              &config.cluster_m, &config.cluster_n, a, b, d, rest);
  const std::string suffix = rest;
  config.accumulate = suffix.starts_with(".acc");
  config.pdl = suffix.ends_with(".pdl");
  if (const size_t at = suffix.find(".split"); at != std::string::npos) {
    config.split_k = std::atoi(suffix.c_str() + at + 6);
  }
  // NOLINTEND(bugprone-unchecked-string-to-number-conversion)
  ParseFamilyName(family, config);
  config.a_type = ByKey(kFp8Types, a);
  config.b_type = ByKey(kFp8Types, b);
  config.d_type = ByKey(kOutTypes, d);
  // Whatever of the key was not understood, the configuration has another key.
  if (ConfigKey(config) != key) {
    throw UnsupportedError("'" + key + "' is not a kernel configuration; write it as in " +
                           ConfigKey(MakeConfig({}, kDenseTileShapes[0])));
  }
  if (const char* rule = BrokenRule(config)) {
    throw UnsupportedError("configuration '" + key + "' cannot run: " + rule);
  }
  return config;
}

}  // namespace fp8gemm
