# SPDX-License-Identifier: Apache-2.0
"""The "xla" implementation: every operation in plain JAX, for any device; the tests' oracle."""

import jax
import jax.numpy as jnp
from jax import lax


def dequantize(values: jax.Array, scales: jax.Array, block: tuple[int, int]) -> jax.Array:
    """Returns the float32 array that block-scaled values stand for.

    Written as one elementwise product with a broadcast, which XLA fuses into a single pass.
    """
    rows, columns = values.shape[-2:]
    if block[0] > 1:
        scales = jnp.repeat(scales, block[0], axis=-2)[..., :rows, :]
    scales = jnp.repeat(scales, block[1], axis=-1)[..., :columns]
    return values.astype(jnp.float32) * scales


def gemm(
    lhs_values: jax.Array,
    lhs_scales: jax.Array,
    rhs_values: jax.Array,
    rhs_scales: jax.Array,
    accumulator: jax.Array | None,
    *,
    rhs_block: tuple[int, int],
    preferred_element_type,
) -> jax.Array:
    """Returns `dequantize(lhs) @ dequantize(rhs).T + accumulator`, rounded once."""
    product = lax.dot_general(
        dequantize(lhs_values, lhs_scales, (1, 128)),
        dequantize(rhs_values, rhs_scales, rhs_block),
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    if accumulator is not None:
        product = product + accumulator.astype(jnp.float32)
    return product.astype(preferred_element_type)
