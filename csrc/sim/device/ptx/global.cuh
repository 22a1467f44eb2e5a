// SPDX-License-Identifier: Apache-2.0
// Simulator twin of kernels/ptx/global.cuh.
#pragma once
#include <ptx/base.cuh>

namespace fp8gemm::ptx {

FP8GEMM_DEVICE float ld_global_f32(const float* addr) {
  float value;
  sim::LoadGlobal(&value, addr, sizeof value);
  return value;
}
FP8GEMM_DEVICE int32_t ld_global_s32(const int32_t* addr) {
  int32_t value;
  sim::LoadGlobal(&value, addr, sizeof value);
  return value;
}

FP8GEMM_DEVICE uint32_t ld_global_nc_u8(const void* addr) {
  uint8_t value;
  sim::LoadGlobalReadOnly(&value, addr, sizeof value);
  return value;
}
FP8GEMM_DEVICE uint32_t ld_global_nc_u16(const void* addr) {
  uint16_t value;
  sim::LoadGlobalReadOnly(&value, addr, sizeof value);
  return value;
}
FP8GEMM_DEVICE uint32_t ld_global_nc_u32(const void* addr) {
  uint32_t value;
  sim::LoadGlobalReadOnly(&value, addr, sizeof value);
  return value;
}
FP8GEMM_DEVICE float ld_global_nc_f32(const float* addr) {
  float value;
  sim::LoadGlobalReadOnly(&value, addr, sizeof value);
  return value;
}
FP8GEMM_DEVICE int32_t ld_global_nc_s32(const int32_t* addr) {
  int32_t value;
  sim::LoadGlobalReadOnly(&value, addr, sizeof value);
  return value;
}
FP8GEMM_DEVICE void ld_global_nc_v2_u32(const void* addr, uint32_t& x, uint32_t& y) {
  uint32_t words[2];
  sim::LoadGlobalReadOnly(words, addr, sizeof words);
  x = words[0];
  y = words[1];
}
FP8GEMM_DEVICE void ld_global_nc_v4_u32(const void* addr, uint32_t& x, uint32_t& y, uint32_t& z,
                                        uint32_t& w) {
  uint32_t words[4];
  sim::LoadGlobalReadOnly(words, addr, sizeof words);
  x = words[0];
  y = words[1];
  z = words[2];
  w = words[3];
}

FP8GEMM_DEVICE void st_global_u8(void* addr, uint32_t value) {
  const uint8_t byte = static_cast<uint8_t>(value);
  sim::StoreGlobal(addr, &byte, sizeof byte);
}
FP8GEMM_DEVICE void st_global_u32(void* addr, uint32_t value) {
  sim::StoreGlobal(addr, &value, sizeof value);
}
FP8GEMM_DEVICE void st_global_f32(float* addr, float value) {
  sim::StoreGlobal(addr, &value, sizeof value);
}
FP8GEMM_DEVICE void copy_shared_to_global_16(void* dst, uint32_t src) {
  sim::CopySharedToGlobal16(dst, src);
}

}  // namespace fp8gemm::ptx
