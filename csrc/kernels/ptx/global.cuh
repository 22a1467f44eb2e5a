// SPDX-License-Identifier: Apache-2.0
// Accesses of global memory, by size. One instruction per function, named after it; an address is a
// multiple of the size.
// PTX ISA: "ld", "ld.global.nc", "st".
#pragma once
#include <ptx/base.cuh>

namespace fp8gemm::ptx {

// ---- Loads of what the kernel before may write until griddepcontrol_wait -----------------------

FP8GEMM_DEVICE float ld_global_f32(const float* addr) {
  float value;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(addr) : "memory");
  return value;
}

FP8GEMM_DEVICE int32_t ld_global_s32(const int32_t* addr) {
  int32_t value;
  asm volatile("ld.global.s32 %0, [%1];" : "=r"(value) : "l"(addr) : "memory");
  return value;
}

// ---- Loads through the read-only path: the memory must not change while the kernel runs ---------

FP8GEMM_DEVICE uint32_t ld_global_nc_u8(const void* addr) {
  uint32_t value;
  asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(value) : "l"(addr));
  return value;
}

FP8GEMM_DEVICE uint32_t ld_global_nc_u16(const void* addr) {
  uint32_t value;
  asm volatile("{\n.reg .u16 half;\nld.global.nc.u16 half, [%1];\ncvt.u32.u16 %0, half;\n}"
               : "=r"(value)
               : "l"(addr));
  return value;
}

FP8GEMM_DEVICE uint32_t ld_global_nc_u32(const void* addr) {
  uint32_t value;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(value) : "l"(addr));
  return value;
}

FP8GEMM_DEVICE float ld_global_nc_f32(const float* addr) {
  float value;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(addr));
  return value;
}

FP8GEMM_DEVICE int32_t ld_global_nc_s32(const int32_t* addr) {
  int32_t value;
  asm volatile("ld.global.nc.s32 %0, [%1];" : "=r"(value) : "l"(addr));
  return value;
}

FP8GEMM_DEVICE void ld_global_nc_v2_u32(const void* addr, uint32_t& x, uint32_t& y) {
  asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(x), "=r"(y) : "l"(addr));
}

FP8GEMM_DEVICE void ld_global_nc_v4_u32(const void* addr, uint32_t& x, uint32_t& y, uint32_t& z,
                                        uint32_t& w) {
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x), "=r"(y), "=r"(z), "=r"(w)
               : "l"(addr));
}

// ---- Stores -------------------------------------------------------------------------------------

FP8GEMM_DEVICE void st_global_u8(void* addr, uint32_t value) {
  asm volatile("{\n.reg .u16 half;\ncvt.u16.u32 half, %1;\nst.global.u8 [%0], half;\n}" ::"l"(addr),
               "r"(value)
               : "memory");
}

FP8GEMM_DEVICE void st_global_u32(void* addr, uint32_t value) {
  asm volatile("st.global.u32 [%0], %1;" ::"l"(addr), "r"(value) : "memory");
}

FP8GEMM_DEVICE void st_global_f32(float* addr, float value) {
  asm volatile("st.global.f32 [%0], %1;" ::"l"(addr), "f"(value) : "memory");
}

// Copies 16 bytes, both addresses 16-byte aligned, through registers.
FP8GEMM_DEVICE void copy_shared_to_global_16(void* dst, uint32_t src) {
  asm volatile(
      "{\n.reg .b32 r<4>;\n"
      "ld.shared.v4.b32 {r0, r1, r2, r3}, [%1];\n"
      "st.global.v4.b32 [%0], {r0, r1, r2, r3};\n}" ::"l"(dst),
      "r"(src)
      : "memory");
}

}  // namespace fp8gemm::ptx
