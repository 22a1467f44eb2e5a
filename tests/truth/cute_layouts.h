// SPDX-License-Identifier: Apache-2.0
// What NVIDIA's CuTe says about Hopper's layouts, as functions of run-time arguments.
//
// Shared memory is given by 32-bit addresses, as the kernels give it. CuTe wants pointers: an
// address, taken for one, is never followed.
#pragma once
#include <cstddef>
#include <cstdint>

// CuTe turns pointers into addresses of shared memory by this intrinsic of nvcc's.
#define CUTE_CVTA_GENERIC_TO_SHARED_ACTIVATED 1
inline size_t __cvta_generic_to_shared(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer);
}

#include <cute/atom/copy_traits_sm90.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>
#include <utility>
#include <vector>

namespace cute_says {

using namespace cute;  // its literals and operators need its namespace

inline constexpr int kMaxN = 192;

template <typename T>
auto SmemPointer(uint32_t address) {
  return make_smem_ptr(reinterpret_cast<T*>(uintptr_t{address}));
}

// ---- Operands ----------------------------------------------------------------------------------

/// Descriptor of a row block and a K step of 32 of the operand tile (kRows, 128) at `address`.
template <int kRows, int kMmaRows>
uint64_t DescriptorOf(uint32_t address, int row_block, int k_step) {
  using SM90::GMMA::Major;
  const auto tile = make_tensor(
      SmemPointer<float_e4m3_t>(address),
      tile_to_shape(SM90::GMMA::Layout_K_SW128_Atom<float_e4m3_t>{}, Shape<Int<kRows>, _128>{}));
  // ((M, K), row blocks, K steps), as partition_A and partition_B of a tiled MMA have it.
  const auto blocks = group_modes<0, 2>(flat_divide(tile, Shape<Int<kMmaRows>, _32>{}));
  const auto descriptors = MakeTensor<SM90::GMMA::smem_desc<Major::K>>{}(blocks);
  return descriptors(_0{}, row_block, k_step).desc_;
}

inline uint64_t DescriptorOfA(uint32_t address, int row_block, int k_step) {
  return DescriptorOf<256, 64>(address, row_block, k_step);
}

inline uint64_t DescriptorOfB(uint32_t address, int n, int k_step) {
  uint64_t descriptor = 0;
  [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
    const auto take = [&](auto rows) { descriptor = DescriptorOf<rows, rows>(address, 0, k_step); };
    ((n == 16 * int(kIndex + 1) ? take(Int<16 * (kIndex + 1)>{}) : void()), ...);
  }(std::make_index_sequence<kMaxN / 16>());
  return descriptor;
}

// ---- Accumulators ------------------------------------------------------------------------------

struct Element {
  int row;
  int column;
};

/// Element of the (64, n) result that `thread` of the warpgroup has in register `i`, at
/// [thread * n / 2 + i].
inline std::vector<Element> Fragments(int n) {
  std::vector<Element> elements(64 * n);
  const auto fill = [&](auto layout) {
    for (int thread = 0; thread < 128; ++thread) {
      for (int i = 0; i < n / 2; ++i) {
        const int index = layout(thread, i);
        elements[thread * n / 2 + i] = {index % 64, index / 64};
      }
    }
  };
  [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
    ((n == 16 * int(kIndex + 1) ? fill(SM90::GMMA::CLayout_64xN<16 * (kIndex + 1)>{}) : void()),
     ...);
  }(std::make_index_sequence<kMaxN / 16>());
  return elements;
}

// ---- Output tile -------------------------------------------------------------------------------

/// Byte offset of every element of a box of 64 rows as TMA swizzles it, at [row * columns +
/// column]; its rows are `span_bytes` long, or have `columns` elements without a swizzle.
template <typename T>
std::vector<uint32_t> BoxOffsets(int span_bytes, int columns) {
  constexpr uint32_t kAddress = 1 << 16;
  std::vector<uint32_t> offsets;
  const auto fill = [&](auto layout) {
    const auto box = make_tensor(SmemPointer<T>(kAddress), layout);
    for (int row = 0; row < 64; ++row) {
      for (int column = 0; column < size<1>(layout); ++column) {
        offsets.push_back(reinterpret_cast<uintptr_t>(&box(row, column)) - kAddress);
      }
    }
  };
  const auto fill_swizzled = [&](auto atom) {
    fill(tile_to_shape(atom, make_shape(_64{}, size<1>(atom))));
  };
  if (span_bytes == 128) fill_swizzled(SM90::GMMA::Layout_K_SW128_Atom<T>{});
  if (span_bytes == 64) fill_swizzled(SM90::GMMA::Layout_K_SW64_Atom<T>{});
  if (span_bytes == 0) fill(make_layout(make_shape(_64{}, columns), LayoutRight{}));
  return offsets;
}

/// Address of what lies at `address` before the swizzle of `span_bytes`.
inline uint32_t Swizzled(uint32_t address, int span_bytes) {
  if (span_bytes == 128) return Swizzle<3, 4, 3>{}(address);
  if (span_bytes == 64) return Swizzle<2, 4, 3>{}(address);
  return Swizzle<1, 4, 3>{}(address);
}

struct MatrixPlace {
  int address_lane;  // whose address
  int byte;          // of the 16 from there
};

/// Where stmatrix.x4 puts the first byte of register `i` of `lane`.
inline MatrixPlace StmatrixPlace(int lane, int i) {
  using Traits = Copy_Traits<SM90_U32x4_STSM_N>;
  const int bit = typename Traits::SrcLayout{}(lane, 32 * i);
  const auto to_thread_and_bit = right_inverse(typename Traits::DstLayout{});
  const int index = to_thread_and_bit(bit);  // lane + 32 * bit, as the domain of DstLayout is
  return {index % 32, index / 32 / 8};
}

}  // namespace cute_says
