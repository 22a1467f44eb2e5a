// SPDX-License-Identifier: Apache-2.0
// Warp- and CTA-level instructions, accesses of shared memory and conversions. One instruction per
// function, named after it.
// PTX ISA: "elect.sync", "setmaxnreg", "barrier", "stmatrix", "cvt", sm_90a.
#pragma once
#include <ptx/base.cuh>

namespace fp8gemm::ptx {

// True in one lane of the warp. The warp must be converged.
FP8GEMM_DEVICE bool elect_sync() {
  uint32_t elected;
  asm volatile(
      "{\n.reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(elected));
  return elected != 0;
}

// Waits for the other lanes of the warp; orders their memory accesses.
FP8GEMM_DEVICE void bar_warp_sync() { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }

// Bit l of the result is `predicate` of lane l. The warp must be converged.
FP8GEMM_DEVICE uint32_t vote_sync_ballot(bool predicate) {
  return __ballot_sync(0xffffffffu, predicate);
}

// Number of bits set.
FP8GEMM_DEVICE uint32_t popc(uint32_t bits) {
  uint32_t count;
  asm("popc.b32 %0, %1;" : "=r"(count) : "r"(bits));
  return count;
}

// `value` of the lane `delta` lanes below, or this lane's own where there is none. Converged warp.
FP8GEMM_DEVICE uint32_t shfl_sync_up(uint32_t value, uint32_t delta) {
  return __shfl_up_sync(0xffffffffu, value, delta);
}

// `value` of lane `lane`. Converged warp.
FP8GEMM_DEVICE uint32_t shfl_sync_idx(uint32_t value, uint32_t lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

// Waits until `threads` threads (a multiple of 32) have arrived at barrier `id` (0..15) of the CTA.
FP8GEMM_DEVICE void barrier_sync(uint32_t id, uint32_t threads) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Raises or lowers the registers of each thread of this warpgroup. All four warps together.
template <uint32_t kRegisters>
FP8GEMM_DEVICE void setmaxnreg_inc() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <uint32_t kRegisters>
FP8GEMM_DEVICE void setmaxnreg_dec() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

FP8GEMM_DEVICE float ld_shared_f32(uint32_t addr) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(addr) : "memory");
  return value;
}

FP8GEMM_DEVICE uint32_t ld_shared_u32(uint32_t addr) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(addr) : "memory");
  return value;
}

FP8GEMM_DEVICE void st_shared_u32(uint32_t addr, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(addr), "r"(value) : "memory");
}

FP8GEMM_DEVICE void ld_shared_v2_u32(uint32_t addr, uint32_t& x, uint32_t& y) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x), "=r"(y) : "r"(addr) : "memory");
}

FP8GEMM_DEVICE void st_shared_v2_u32(uint32_t addr, uint32_t x, uint32_t y) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(addr), "r"(x), "r"(y) : "memory");
}

// Four words at a 16-byte-aligned address.
FP8GEMM_DEVICE void st_shared_v4_u32(uint32_t addr, uint32_t x, uint32_t y, uint32_t z,
                                     uint32_t w) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(addr), "r"(x), "r"(y), "r"(z),
               "r"(w)
               : "memory");
}

// Two floats at an 8-byte-aligned address.
FP8GEMM_DEVICE void ld_shared_v2_f32(uint32_t addr, float& x, float& y) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x), "=f"(y) : "r"(addr) : "memory");
}

// Four floats at a 16-byte-aligned address.
FP8GEMM_DEVICE void ld_shared_v4_f32(uint32_t addr, float (&values)[4]) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(values[0]), "=f"(values[1]), "=f"(values[2]), "=f"(values[3])
               : "r"(addr)
               : "memory");
}

FP8GEMM_DEVICE void st_shared_f32(uint32_t addr, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(addr), "f"(value) : "memory");
}

FP8GEMM_DEVICE void st_shared_v2_f32(uint32_t addr, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(addr), "f"(x), "f"(y) : "memory");
}

// Stores four 8x8 matrices of 16-bit elements. Lane 8 i + r gives the 16-byte-aligned address of
// row r of matrix i; register i of lane l holds elements 2 (l % 4), +1 of row l / 4 of matrix i.
FP8GEMM_DEVICE void stmatrix_x4(uint32_t addr, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(addr),
               "r"(m0), "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

// Two floats rounded to nearest even; `low` in the low half.
FP8GEMM_DEVICE uint32_t cvt_rn_bf16x2_f32(float high, float low) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

FP8GEMM_DEVICE uint32_t cvt_rn_f16x2_f32(float high, float low) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// One half-precision number, in the low 16 bits of `half`.
FP8GEMM_DEVICE float cvt_f32_f16(uint32_t half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<uint16_t>(half)));
  return value;
}

FP8GEMM_DEVICE uint32_t float_as_uint(float value) {
  uint32_t bits;
  asm("mov.b32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

FP8GEMM_DEVICE float uint_as_float(uint32_t bits) {
  float value;
  asm("mov.b32 %0, %1;" : "=f"(value) : "r"(bits));
  return value;
}

}  // namespace fp8gemm::ptx
