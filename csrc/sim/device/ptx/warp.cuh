// SPDX-License-Identifier: Apache-2.0
// Simulator twin of kernels/ptx/warp.cuh.
#pragma once
#include <ptx/base.cuh>

namespace fp8gemm::ptx {

FP8GEMM_DEVICE bool elect_sync() { return sim::ElectSync(); }
FP8GEMM_DEVICE uint32_t vote_sync_ballot(bool predicate) { return sim::VoteBallot(predicate); }
FP8GEMM_DEVICE uint32_t popc(uint32_t bits) { return __builtin_popcount(bits); }
FP8GEMM_DEVICE uint32_t shfl_sync_up(uint32_t value, uint32_t delta) {
  return sim::ShflUp(value, delta);
}
FP8GEMM_DEVICE uint32_t shfl_sync_idx(uint32_t value, uint32_t lane) {
  return sim::ShflIdx(value, lane);
}
FP8GEMM_DEVICE void bar_warp_sync() { sim::BarWarpSync(); }
FP8GEMM_DEVICE void barrier_sync(uint32_t id, uint32_t threads) { sim::BarrierSync(id, threads); }

template <uint32_t kRegisters>
FP8GEMM_DEVICE void setmaxnreg_inc() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0);
  sim::SetMaxRegisters(true, kRegisters);
}
template <uint32_t kRegisters>
FP8GEMM_DEVICE void setmaxnreg_dec() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0);
  sim::SetMaxRegisters(false, kRegisters);
}

FP8GEMM_DEVICE float ld_shared_f32(uint32_t addr) { return sim::LoadSharedF32(addr); }
FP8GEMM_DEVICE uint32_t ld_shared_u32(uint32_t addr) { return sim::LoadSharedU32(addr); }
FP8GEMM_DEVICE void ld_shared_v2_f32(uint32_t addr, float& x, float& y) {
  sim::LoadSharedV2F32(addr, x, y);
}
FP8GEMM_DEVICE void ld_shared_v4_f32(uint32_t addr, float (&values)[4]) {
  sim::LoadSharedV4F32(addr, values);
}
FP8GEMM_DEVICE void st_shared_f32(uint32_t addr, float value) { sim::StoreSharedF32(addr, value); }
FP8GEMM_DEVICE void st_shared_v2_f32(uint32_t addr, float x, float y) {
  sim::StoreSharedV2F32(addr, x, y);
}
FP8GEMM_DEVICE void st_shared_u32(uint32_t addr, uint32_t value) {
  sim::StoreSharedU32(addr, value);
}
FP8GEMM_DEVICE void ld_shared_v2_u32(uint32_t addr, uint32_t& x, uint32_t& y) {
  sim::LoadSharedV2U32(addr, x, y);
}
FP8GEMM_DEVICE void st_shared_v2_u32(uint32_t addr, uint32_t x, uint32_t y) {
  sim::StoreSharedV2U32(addr, x, y);
}
FP8GEMM_DEVICE void st_shared_v4_u32(uint32_t addr, uint32_t x, uint32_t y, uint32_t z,
                                     uint32_t w) {
  sim::StoreSharedV4U32(addr, x, y, z, w);
}
FP8GEMM_DEVICE void stmatrix_x4(uint32_t addr, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  sim::StoreMatrixX4(addr, m0, m1, m2, m3);
}

FP8GEMM_DEVICE uint32_t cvt_rn_bf16x2_f32(float high, float low) {
  return sim::PackBf16x2(high, low);
}
FP8GEMM_DEVICE uint32_t cvt_rn_f16x2_f32(float high, float low) {
  return sim::PackF16x2(high, low);
}
FP8GEMM_DEVICE float cvt_f32_f16(uint32_t half) { return sim::F16ToF32(half); }
FP8GEMM_DEVICE uint32_t float_as_uint(float value) { return __builtin_bit_cast(uint32_t, value); }
FP8GEMM_DEVICE float uint_as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }

}  // namespace fp8gemm::ptx
