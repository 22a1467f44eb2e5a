# SPDX-License-Identifier: Apache-2.0
"""Activations and norms in plain JAX, as the kernels compute them on the way into a quantizer."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jax_fp8gemm._src.xla import gemm as xla_gemm

GATED = ("swiglu", "geglu")
NORM = "rms_norm"
KINDS = (*GATED, "gelu", NORM)
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = _LINEAR * 0.044715


def activate(kind: str, x: jax.Array, up: jax.Array | None) -> jax.Array:
    """Returns `silu(x) * up`, `gelu(x) * up` or `gelu(x)`, rounded once to the dtype of x.

    The kernels' bits, up to the rounding of the exponential.

    Args:
        kind: One of KINDS, but the norm.
        x: `(..., K)`, or `(..., 2 * K)` with `up` behind it.
        up: As x, or None.
    """
    dtype = x.dtype
    if kind in GATED and up is None:
        x, up = jnp.split(x, 2, axis=-1)
    x = xla_gemm.as_float32(x)
    exponent = x if kind == "swiglu" else x * (_LINEAR + _CUBIC * (x * x))
    y = x * lax.logistic(exponent)
    return (y if up is None else y * xla_gemm.as_float32(up)).astype(dtype)


def normalize(x: jax.Array, row_factors: jax.Array, column_factors: jax.Array) -> jax.Array:
    """Returns x times factors of its rows and then of its columns, rounded once to the dtype of x.

    The kernels' bits.

    Args:
        x: `(..., K)`.
        row_factors: `(...)` float32.
        column_factors: `(K,)` float32, or `(*batch, K)` for x `(*batch, R, K)`.
    """
    missing = tuple(range(column_factors.ndim - 1, x.ndim - 1))
    columns = jnp.expand_dims(column_factors, missing)
    y = xla_gemm.as_float32(x) * row_factors[..., None] * columns
    return y.astype(x.dtype)
