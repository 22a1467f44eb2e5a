# SPDX-License-Identifier: Apache-2.0
"""Problems with an edge that the problem made for a kernel does not have."""

from _problems import BLOCK, Problem

PROBLEMS = {
    # More than the 32 blocks of K whose weight scales a warp holds at a time, twice.
    "long K": Problem("dense", 68, 136, 66 * BLOCK),
    "one M tile": Problem("dense", 64, 520, 5 * BLOCK),
    # More than the 4 sizes that a lane of the table's warp loads at a time.
    "many groups": Problem(
        "ragged", 300, 40, 136, (3, 0, 0, 0, 11, 0, 1, 0) * 18 + (5, 0) * 6, 156
    ),
    "sizes out of range": Problem("ragged", 300, 136, 200, (-5, 170, -1, 2**31 - 1), 4),
    "group ids out of range": Problem(
        "contiguous", 512, 136, 200, (7,) * 128 + (1,) * 100 + (-1,) * 156 + (0,) * 128, 2
    ),
    "masks out of range": Problem("masked", 140, 136, 200, (-7, 141, 2**31 - 1, 30), 4),
    "K groups past the end": Problem(
        "k_grouped", 72, 136, 512, (-3, 300, 2**31 - 1), 3, rhs_is_1x128=True, dtype="float32"
    ),
}  # fmt: skip
