# SPDX-License-Identifier: Apache-2.0
"""Bugs of the quantize kernels: scales, edges, groups, and the barriers around shared memory."""

from mutation.mutant import Mutant

ROWS = "quantize_rows.bf16.e4m3.f32"
ROWS_POW2 = "quantize_rows.f32.e4m3.pow2"
BLOCKS = "quantize_blocks.bf16.e4m3.f32"
TRANSPOSED = "quantize_transposed.bf16.e4m3.f32"
GROUPED = "quantize_kgrouped.bf16.e4m3.f32"

MUTANTS = (
    Mutant(
        "scale of the first row for all",
        "fp8_quantize/quantize_rows.cuh",
        "ptx::shfl_sync_idx(ptx::float_as_uint(own.inverse), r);",
        "ptx::shfl_sync_idx(ptx::float_as_uint(own.inverse), 0);",
        "Each row has a scale of its own.",
        (ROWS,),
    ),
    Mutant(
        "largest magnitude of the last row for all",
        "fp8_quantize/quantize_rows.cuh",
        "if (lane == r) own_amax = amax;",
        "own_amax = amax;",
        "Lane r keeps what belongs to row r.",
        (ROWS,),
    ),
    Mutant(
        "scales of rows past the last written",
        "fp8_quantize/quantize_rows.cuh",
        "  if (lane < num_rows) {",
        "  if (lane < kWarpRows) {",
        "They lie where the scales of the next block are.",
        (ROWS,),
    ),
    Mutant(
        "elements past the end of a row read",
        "fp8_quantize/quantize_scale.cuh",
        "      if (i >= valid) continue;\n",
        "",
        "What lies behind a row belongs to the next one.",
        (ROWS,),
    ),
    Mutant(
        "scale of a block of zeros is not 1",
        "fp8_quantize/quantize_scale.cuh",
        "  if (amax_bits != 0) {",
        "  {",
        "The smallest scale there is would stand for a block of zeros.",
        (ROWS,),
    ),
    Mutant(
        "subnormal scales",
        "fp8_quantize/quantize_scale.cuh",
        "ptx::max_nan_f32(amax / kLargest<kConfig.type>, kSmallestNormal);",
        "amax / kLargest<kConfig.type>;",
        "The inverse of a subnormal scale can be infinite.",
        (ROWS,),
    ),
    Mutant(
        "powers of two rounded down",
        "fp8_quantize/quantize_scale.cuh",
        "(bits + 0x007fffff) & kInfinityBits",
        "bits & kInfinityBits",
        "Values pass the largest number of the type.",
        (ROWS_POW2,),
    ),
    Mutant(
        "values under the largest power of two not cut off",
        "fp8_quantize/quantize_scale.cuh",
        "      if (inverse <= kTopInverse) limit_ = kBelow;\n",
        "",
        "The product of value and scale is infinite.",
        (ROWS_POW2,),
    ),
    Mutant(
        "magnitudes of four warps forgotten",
        "fp8_quantize/quantize_blocks.cuh",
        "lane % kQuantizeWarps * sizeof(uint32_t)",
        "lane % (kQuantizeWarps / 2) * sizeof(uint32_t)",
        "A block is that of all eight warps.",
        (BLOCKS,),
    ),
    Mutant(
        "magnitudes read before all warps have written them",
        "fp8_quantize/quantize_blocks.cuh",
        "  sync_threads();\n",
        "",
        "Another warp's place may hold anything.",
        (BLOCKS,),
    ),
    Mutant(
        "magnitudes of columns read before all warps have written them",
        "fp8_quantize/quantize_transposed.cuh",
        "  sync_threads();\n  FP8GEMM_UNROLL\n  for (uint32_t w",
        "  FP8GEMM_UNROLL\n  for (uint32_t w",
        "Another warp's place may hold anything.",
        (TRANSPOSED,),
    ),
    Mutant(
        "tile stored before all warps have written it",
        "fp8_quantize/quantize_transposed.cuh",
        "  sync_threads();\n  store_tile_rows",
        "  store_tile_rows",
        "A row of the tile is of all eight warps.",
        (TRANSPOSED,),
    ),
    Mutant(
        "columns of a pair exchanged",
        "fp8_quantize/quantize_transposed.cuh",
        "words[i] = swapped ? packed[1 - turn][i] : packed[turn][i];",
        "words[i] = packed[turn][i];",
        "Half of the lanes begin with the second column.",
        (TRANSPOSED,),
    ),
    Mutant(
        "scales of every matrix in the first one",
        "fp8_quantize/quantize_transposed.cuh",
        "(matrix * out_blocks + block) * params.scale_pitch",
        "block * params.scale_pitch",
        "Each matrix of a batch has scales of its own.",
        (TRANSPOSED,),
    ),
    Mutant(
        "rows of the next group quantized with a group",
        "fp8_quantize/quantize_transposed.cuh",
        "const uint32_t count = min(end - row, kScaleBlock);",
        "const uint32_t count = min(params.rows - row, kScaleBlock);",
        "A block of columns holds one group and then zeros.",
        (GROUPED,),
    ),
    Mutant(
        "groups past 32 start at the first row",
        "fp8_quantize/quantize_transposed.cuh",
        "    rows_before = ptx::shfl_sync_idx(end, kLastLane);\n",
        "",
        "The sums of the first 32 groups must carry on.",
        (GROUPED,),
    ),
    Mutant(
        "negative size of rows to quantize counted as large",
        "fp8_quantize/quantize_transposed.cuh",
        "given < 0 ? 0 : min(static_cast<uint32_t>(given), params.rows);",
        "min(static_cast<uint32_t>(given), params.rows);",
        "A negative size counts as none.",
        (GROUPED,),
    ),
    Mutant(
        "rows past the last quantized",
        "fp8_quantize/quantize_transposed.cuh",
        "min(rows_before + warp_prefix_sum(size, params.rows), params.rows);",
        "rows_before + warp_prefix_sum(size, params.rows);",
        "What passes the last row is cut off.",
        (GROUPED,),
    ),
)
