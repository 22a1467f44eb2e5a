# SPDX-License-Identifier: Apache-2.0
"""Every quantizer of whole arrays, and those of two layouts in one reading, which have no name."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

import jax_fp8gemm as fp8
from jax_fp8gemm._src.ops.quantizer import Operands, Quantizer
from jax_fp8gemm._src.transforms.apply import apply


def of_two(
    kind: str,
    x: jax.Array,
    group_sizes: jax.Array | None = None,
    *,
    dtype: Any = jnp.float8_e4m3fn,
    scale_format: str = "float32",
    implementation: str | None = None,
) -> tuple[fp8.BlockScaled, fp8.BlockScaled]:
    """Returns x scaled along tokens, and along its rows."""
    op = Quantizer("test", kind, jnp.dtype(dtype), scale_format, implementation)
    leaves = apply(op, Operands(x, None, group_sizes))
    return fp8.BlockScaled(*leaves[:2], (1, 128)), fp8.BlockScaled(*leaves[2:], (1, 128))


QUANTIZERS = {
    "rows": fp8.quantize,
    "blocks": functools.partial(fp8.quantize, block=(128, 128)),
    "transposed": fp8.quantize_transposed,
    "rows_and_transposed": functools.partial(of_two, "rows_and_transposed"),
}
GROUPED_QUANTIZERS = {
    "k_grouped": fp8.quantize_k_grouped,
    "rows_and_k_grouped": functools.partial(of_two, "rows_and_k_grouped"),
}
