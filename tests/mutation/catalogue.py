# SPDX-License-Identifier: Apache-2.0
"""All mutants, and the few that every test run tries."""

from mutation import (
    epilogue_mutants,
    group_mutants,
    product_mutants,
    quantize_mutants,
    synchronization_mutants,
)

MUTANTS = (
    *synchronization_mutants.MUTANTS,
    *product_mutants.MUTANTS,
    *epilogue_mutants.MUTANTS,
    *group_mutants.MUTANTS,
    *quantize_mutants.MUTANTS,
)

# One or two of each module, and of each way to be caught.
FAST_NAMES = (
    "slot released before the wgmma wait",
    "stores not fenced",
    "peer not told of a free slot",
    "multicast half at the wrong place",
    "no wgmma wait",
    "second chunk of 32 weight scales",
    "group sizes not summed across a warp",
    "padding rows of the contiguous layout not cleared",
    "rows of the next group quantized with a group",
)
