# SPDX-License-Identifier: Apache-2.0
"""Problems at the edges of every kind, each with a kernel: for the simulator and for a GPU."""

import re

from _problems import BLOCK, Problem

from jax_fp8gemm._src.native import extension

KEYS = extension.core().candidate_configs()
_BY_TILE = {re.sub(r"\.s\d+", "", key): key for key in KEYS}


def kernel(tile: str) -> str:
    """Returns the key of a configuration from a key without its number of stages."""
    return _BY_TILE[tile]


SMALL = kernel("1d2d.m16n32.w1.c1x1.e4m3.e4m3.bf16")
WIDE = kernel("1d2d.m64n192.w1.c1x1.e4m3.e4m3.bf16")
PAIR = kernel("1d2d.m128n128.w2.c2x1.e4m3.e4m3.bf16")
SPLIT = kernel("1d2d.m16n128.w1.c1x1.e4m3.e4m3.bf16.split8")
RAGGED = kernel("1d2d_ragged.m16n64.w1.c1x1.e4m3.e4m3.bf16")
RAGGED_PAIR = kernel("1d2d_ragged.m128n128.w2.c2x1.e4m3.e4m3.bf16")
CONTIGUOUS = kernel("1d2d_contiguous.m64n128.w1.c1x1.e4m3.e4m3.bf16")
MASKED = kernel("1d2d_masked.m16n64.w1.c1x1.e4m3.e4m3.bf16")
MASKED_PAIR = kernel("1d2d_masked.m128n128.w2.c2x1.e4m3.e4m3.bf16")
K_GROUPED = kernel("1d1d_kgrouped.m64n64.w1.c1x1.e4m3.e4m3.f32")
K_GROUPED_ACC = kernel("1d1d_kgrouped.m64n64.w1.c1x1.e4m3.e4m3.f32.acc")

# Name: problem and kernel. What problem_for does not reach.
SPECIAL = {
    "one element": (Problem("dense", 1, 1, 1), SMALL),
    "K around 32 blocks": (Problem("dense", 20, 40, 33 * BLOCK - 16), SMALL),
    "K of 65 blocks, two scale blocks": (Problem("dense", 16, 200, 65 * BLOCK), WIDE),
    "odd row lengths": (Problem("dense", 33, 77, 131), SMALL),
    "one tile for a pair": (Problem("dense", 100, 72, 700), PAIR),
    "split K with fewer blocks than CTAs": (Problem("dense", 20, 136, 3 * BLOCK), SPLIT),
    "split K of one block": (Problem("dense", 5, 24, 100), SPLIT),
    "split K of 33 blocks for each": (Problem("dense", 16, 128, 33 * 8 * BLOCK - 60), SPLIT),
    "one group takes everything": (
        Problem("ragged", 200, 136, 200, (0, 0, 200, 0), 4),
        RAGGED,
    ),
    "no group takes anything": (Problem("ragged", 70, 136, 200, (0, 0, 0), 3), RAGGED),
    "groups around a tile": (
        Problem("ragged", 700, 136, 200, (0, 1, 127, 128, 129, 255, 1), 7),
        RAGGED_PAIR,
    ),
    "sizes out of range": (Problem("ragged", 300, 136, 200, (-5, 170, -1, 2**31 - 1), 4), RAGGED),
    "256 groups": (Problem("ragged", 300, 24, 136, (0, 1, 2, 1) * 64, 256), RAGGED),
    "512 groups": (Problem("ragged", 300, 24, 136, (1, 0) * 100 + (0,) * 312, 512), RAGGED),
    "group ids out of range": (
        Problem("contiguous", 640, 136, 200, (7,) * 128 + (1,) * 200 + (-1,) * 56 + (-9,) * 128
                + (0,) * 128, 2),
        CONTIGUOUS,
    ),
    "all padding": (Problem("contiguous", 256, 136, 200, (-1,) * 256, 2), CONTIGUOUS),
    "masks out of range": (Problem("masked", 40, 136, 200, (-7, 41, 2**31 - 1, 40), 4), MASKED),
    "no masked rows": (Problem("masked", 300, 136, 200, (0, 0, 0), 3), MASKED_PAIR),
    "few rows per group": (Problem("masked", 3, 136, 200, (1, 3, 0, 2) * 20, 80), MASKED),
    "256 aligned groups, of which two have rows": (
        Problem("contiguous", 384, 24, 136, (255,) * 129 + (-1,) * 127 + (96,) * 128, 256),
        CONTIGUOUS,
    ),
    "256 masked groups": (Problem("masked", 3, 24, 136, (0, 1, 3, 2) * 64, 256), MASKED),
    "room for one row": (Problem("masked", 1, 24, 136, (1, 0, 1), 3), MASKED_PAIR),
    "masked padding unspecified": (
        Problem("masked", 300, 136, 200, (130, 0, 300, 7), 4, zero_padding=False),
        MASKED_PAIR,
    ),
    "K groups that use no K": (
        Problem("k_grouped", 72, 136, 512, (0, 0, 130, 0), 4, rhs_is_1x128=True, dtype="float32"),
        K_GROUPED,
    ),
    "one K group takes everything, to the middle of a block": (
        Problem("k_grouped", 72, 136, 600, (0, 600, 0), 3, rhs_is_1x128=True, dtype="float32"),
        K_GROUPED,
    ),
    "256 K groups": (
        Problem("k_grouped", 3, 24, 640, (0, 1, 0, 0) + (0,) * 250 + (129, 256), 256,
                rhs_is_1x128=True, dtype="float32"),
        K_GROUPED,
    ),
    "K groups past the end": (
        Problem("k_grouped", 72, 136, 512, (-3, 300, 2**31 - 1), 3, rhs_is_1x128=True,
                dtype="float32"),
        K_GROUPED,
    ),
    "K groups keep the accumulator": (
        Problem("k_grouped", 72, 136, 512, (0, 200, 0, 256), 4, rhs_is_1x128=True,
                dtype="float32", accumulate=True),
        K_GROUPED_ACC,
    ),
}  # fmt: skip
