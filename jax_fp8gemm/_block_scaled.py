# SPDX-License-Identifier: Apache-2.0
"""Where BlockScaled was until it moved; pickles of that time name this module."""

from jax_fp8gemm._src.operands.block_scaled import BlockScaled as BlockScaled
