# SPDX-License-Identifier: Apache-2.0
"""Bugs in what is stored: staging in shared memory, swizzles, accumulators, the order of tiles."""

from mutation.mutant import Mutant
from mutation.synchronization_mutants import ONE, PAIR_M, RAGGED, TWO

SWIZZLE_64B = "1d2d.m64n96.w1.c1x1.e4m3.e4m3.bf16"
NO_SWIZZLE = "1d2d.m64n80.w1.c1x1.e4m3.e4m3.bf16"
FLOATS = "1d2d.m128n64.w2.c1x1.e4m3.e4m3.f32"
# float32 tiles of two row_slices store one after the other from the same slab.
REUSED_SLAB = "1d1d.m256n96.w2.c1x1.e4m3.e4m3.f32"
ACCUMULATE = "1d2d.m64n128.w1.c1x1.e4m3.e4m3.bf16.acc"
ACCUMULATE_F16 = "1d2d.m64n128.w1.c1x1.e4m3.e4m3.f16.acc"
ACCUMULATE_F32 = "1d1d.m64n64.w1.c1x1.e4m3.e4m3.f32.acc"
NO_SWIZZLE_F32 = "1d1d.m192n112.w3.c1x1.e4m3.e4m3.f32.acc"

_WAIT_FOR_STORES = (
    "      if (ptx::thread_idx() % kWarpgroupThreads == 0) "
    "ptx::cp_async_bulk_wait_group_read<0>();\n"
)
_BARRIER = "sync_consumer(consumer);\n"
_SWIZZLE = "row / (128 / kSwizzle) % (kSwizzle / 16);"

MUTANTS = (
    Mutant(
        "blocks of float32 exchanged in registers only",
        "fp8_gemm/epilogue.cuh",
        "                              exchange(ptx::lane_idx() / 4));",
        "                              0);",
        "Every other row gets the columns of the other half of a swizzled row.",
        (FLOATS, ACCUMULATE_F32),
    ),
    Mutant(
        "blocks of float32 exchanged within the wrong half",
        "fp8_gemm/epilogue.cuh",
        "const uint32_t other = i ^ (kDistance * kBytes);",
        "const uint32_t other = i ^ kBytes;",
        "Neighbouring blocks change places instead of those half a swizzled row apart.",
        (FLOATS,),
    ),
    Mutant(
        "stores not fenced",
        "fp8_gemm/epilogue.cuh",
        f"    ptx::fence_proxy_async_shared_cta();\n    {_BARRIER}    FP8GEMM_UNROLL\n",
        f"    {_BARRIER}    FP8GEMM_UNROLL\n",
        "TMA may store what shared memory held before.",
        (ONE,),
    ),
    Mutant(
        "no wait before the staging area is reused",
        "fp8_gemm/epilogue.cuh",
        _WAIT_FOR_STORES,
        "",
        "The next tile overwrites what TMA is still storing.",
        (ONE,),
    ),
    Mutant(
        "no wait before a slab is reused",
        "fp8_gemm/epilogue.cuh",
        _WAIT_FOR_STORES,
        _WAIT_FOR_STORES.replace("if (", "if (first == 0 && "),
        "The second row slice overwrites the first while TMA stores it.",
        (REUSED_SLAB,),
    ),
    Mutant(
        "no barrier after the wait for stores",
        "fp8_gemm/epilogue.cuh",
        _WAIT_FOR_STORES + "      " + _BARRIER,
        _WAIT_FOR_STORES,
        "Only thread 0 knows that the staging area is free.",
        (ONE,),
    ),
    Mutant(
        "no barrier before the stores",
        "fp8_gemm/epilogue.cuh",
        f"    ptx::fence_proxy_async_shared_cta();\n    {_BARRIER}    FP8GEMM_UNROLL\n",
        "    ptx::fence_proxy_async_shared_cta();\n    FP8GEMM_UNROLL\n",
        "Thread 0 stores before the other threads have written.",
        (ONE,),
    ),
    Mutant(
        "consumers share a barrier",
        "fp8_gemm/epilogue.cuh",
        f"    ptx::fence_proxy_async_shared_cta();\n    {_BARRIER}    FP8GEMM_UNROLL\n",
        "    ptx::fence_proxy_async_shared_cta();\n"
        "    ptx::barrier_sync(kFirstConsumerBarrier, kWarpgroupThreads);\n    FP8GEMM_UNROLL\n",
        "Warps of different consumers complete each other's barrier.",
        (TWO,),
    ),
    Mutant(
        "exit with stores that still read",
        "fp8_gemm/epilogue.cuh",
        "finish_stores() { ptx::cp_async_bulk_wait_group_read<0>(); }",
        "finish_stores() {}",
        "Shared memory is gone when the CTA exits.",
        (ONE,),
    ),
    Mutant(
        "128B swizzle of four chunks",
        "fp8_gemm/epilogue.cuh",
        _SWIZZLE,
        "row / (128 / kSwizzle) % 4;",
        "Rows 4 to 7 of an atom are laid out like rows 0 to 3.",
        (ONE,),
    ),
    Mutant(
        "64B swizzle turns with every row",
        "fp8_gemm/epilogue.cuh",
        _SWIZZLE,
        "row % (kSwizzle / 16);",
        "With rows of 64 bytes the pattern turns every second row.",
        (SWIZZLE_64B,),
    ),
    Mutant(
        "rows without a swizzle as long as those with one",
        "fp8_gemm/epilogue.cuh",
        "slice_base + row * d_row_bytes(kConfig)",
        "slice_base + row * 128",
        "Boxes without a swizzle have rows of any length.",
        (NO_SWIZZLE, NO_SWIZZLE_F32),
    ),
    Mutant(
        "halves of 16 columns exchanged in registers only",
        "fp8_gemm/epilogue.cuh",
        "(lane / 16) ^ Order::exchange(lane % 16);",
        "lane / 16;",
        "Rows 4 to 7 of an stmatrix get the columns of its other half.",
        (NO_SWIZZLE,),
    ),
    Mutant(
        "halves of 16 columns exchanged by address only",
        "fp8_gemm/epilogue.cuh",
        "      Order::apply(pairs);\n      const uint32_t half",
        "      const uint32_t half",
        "Rows 4 to 7 of an stmatrix get the columns of its other half.",
        (NO_SWIZZLE,),
    ),
    Mutant(
        "blocks without a swizzle exchanged in registers only",
        "fp8_gemm/epilogue.cuh",
        "(byte ^ (exchange * 16));",
        "byte;",
        "Every other pair of rows gets the columns of neighbouring blocks.",
        (NO_SWIZZLE_F32,),
    ),
    Mutant(
        "boxes as wide as the widest",
        "fp8_gemm/epilogue.cuh",
        "(byte / kSwizzle) * (kMmaM * kSwizzle);",
        "(byte / kSwizzle) * (kMmaM * 128);",
        "A box of narrower rows is smaller.",
        (SWIZZLE_64B,),
    ),
    Mutant(
        "boxes stored at the first columns",
        "fp8_gemm/epilogue.cuh",
        "tile.column + box * d_box_columns(kConfig),\n",
        "tile.column,\n",
        "All boxes of a tile go to its first columns.",
        (SWIZZLE_64B,),
    ),
    Mutant(
        "right half of stmatrix at the left",
        "fp8_gemm/epilogue.cuh",
        "(2 * i + 8 * half)",
        "(2 * i)",
        "Lanes 16 to 31 address the right half of 16 columns.",
        (ONE,),
    ),
    Mutant(
        "second row of float pairs at the first",
        "fp8_gemm/epilogue.cuh",
        "d_address<kConfig>(slice_base, row + 8 * (i / 2 % 2), byte,",
        "d_address<kConfig>(slice_base, row, byte,",
        "A thread holds pairs of two rows, eight apart.",
        (FLOATS,),
    ),
    Mutant(
        "pairs packed high and low swapped",
        "fp8_gemm/epilogue.cuh",
        "return ptx::cvt_rn_bf16x2_f32(high, low);",
        "return ptx::cvt_rn_bf16x2_f32(low, high);",
        "The low half is the element of the lower column.",
        (ONE,),
    ),
    Mutant(
        "parity of the accumulator never turns",
        "fp8_gemm/consumer.cuh",
        "    c_parity ^= 1;\n",
        "",
        "From the second tile on, the accumulator is read before it has landed.",
        (ACCUMULATE,),
    ),
    Mutant(
        "accumulator not waited for",
        "fp8_gemm/epilogue.cuh",
        "      ptx::mbarrier_wait_parity(smem.c_full(consumer), c_parity);\n",
        "",
        "The accumulator is read before it has landed.",
        (ACCUMULATE,),
    ),
    Mutant(
        "accumulator loaded over unfinished stores",
        "fp8_gemm/epilogue.cuh",
        "    ptx::cp_async_bulk_wait_group_read<0>();\n    ptx::mbarrier_arrive_expect_tx",
        "    ptx::mbarrier_arrive_expect_tx",
        "It lands where the previous tile is still being stored from.",
        (ACCUMULATE,),
    ),
    Mutant(
        "accumulator's bytes of one row slice too many",
        "fp8_gemm/epilogue.cuh",
        "kConfig.row_slices() * d_box_rows(kConfig)",
        "(kConfig.row_slices() + 1) * d_box_rows(kConfig)",
        "The barrier waits for bytes that nobody loads.",
        (ACCUMULATE,),
    ),
    Mutant(
        "accumulator overwritten by neighbouring lanes",
        "fp8_gemm/epilogue.cuh",
        "      ptx::bar_warp_sync();  // a warp overwrites only what it has read itself\n",
        "",
        "stmatrix of a lane that is ahead overwrites what another lane has not read.",
        (ACCUMULATE,),
    ),
    Mutant(
        "accumulator's halves swapped",
        "fp8_gemm/epilogue.cuh",
        "low += ptx::cvt_f32_f16(pair & 0xffffu);",
        "low += ptx::cvt_f32_f16(pair >> 16);",
        "The even column takes the odd one's accumulator.",
        (ACCUMULATE_F16,),
    ),
    Mutant(
        "accumulator replaces the product",
        "fp8_gemm/epilogue.cuh",
        "accum[j] += x;\n",
        "accum[j] = x;\n",
        "The result is their sum.",
        (ACCUMULATE_F32,),
    ),
    Mutant(
        "last band as wide as the others",
        "fp8_gemm/tile_scheduler.cuh",
        "band < params_.whole_bands ? params_.raster_width : params_.last_band_width;",
        "params_.raster_width;",
        "A narrower last band is walked as if it were whole: tiles outside, others never.",
        (ONE,),
    ),
    Mutant(
        "bands one too wide",
        "fp8_gemm/tile_scheduler.cuh",
        "place_at(band * params_.raster_width.divisor + within",
        "place_at(band * (params_.raster_width.divisor + 1) + within",
        "The second band starts past tiles that nobody computes.",
        (ONE,),
    ),
    Mutant(
        "reciprocals rounded down",
        "shared/fast_divisor.h",
        "uint64_t{2 * x} * multiplier)",
        "uint64_t{2 * x} * (multiplier - (multiplier != 1u << 31)))",
        "Multiples of a divisor that is no power of two get a quotient one too small.",
        (ONE,),
    ),
    Mutant(
        "last band of a group as wide as the others",
        "fp8_gemm/grouped_tiles.cuh",
        "min(raster_width, (along_n ? tiles_n : tiles_m) - first_minor);",
        "raster_width;",
        "A narrower last band is walked as if it were whole: tiles outside, others never.",
        (RAGGED,),
    ),
    Mutant(
        "phantom tile left out",
        "fp8_gemm/tile_scheduler.cuh",
        "    place(next_, tile);\n    if constexpr (kConfig.split_k > 1)",
        "    place(next_, tile);\n"
        "    if (tile.row >= params_.m) return false;\n"
        "    if constexpr (kConfig.split_k > 1)",
        "A CTA without a tile must still take part in the multicast of its peer.",
        (PAIR_M,),
    ),
    Mutant(
        "both CTAs of a pair on the same tile",
        "fp8_gemm/tile_scheduler.cuh",
        "* kConfig.cluster_m + rank_ % kConfig.cluster_m;",
        "* kConfig.cluster_m;",
        "The second CTA has the tile next to the first one's.",
        (PAIR_M,),
    ),
    Mutant(
        "last tile left out",
        "fp8_gemm/tile_scheduler.cuh",
        "if (next_ >= params_.cluster_tiles_m * params_.cluster_tiles_n) return false;",
        "if (next_ + 1 >= params_.cluster_tiles_m * params_.cluster_tiles_n) return false;",
        "Its memory keeps what was there.",
        (ONE,),
    ),
    Mutant(
        "clusters step by CTAs",
        "fp8_gemm/tile_scheduler.cuh",
        "stride_(ptx::grid_dim() / kConfig.cluster_size())",
        "stride_(ptx::grid_dim())",
        "Half of the tiles are computed by nobody.",
        (PAIR_M,),
    ),
)
