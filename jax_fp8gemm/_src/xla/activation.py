# SPDX-License-Identifier: Apache-2.0
"""Activations in plain JAX: what the kernels compute up to the rounding of the exponential."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jax_fp8gemm._src.xla import gemm as xla_gemm

GATED = ("swiglu", "geglu")
KINDS = (*GATED, "gelu")
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = _LINEAR * 0.044715


def activate(kind: str, x: jax.Array, up: jax.Array | None) -> jax.Array:
    """Returns `silu(x) * up`, `gelu(x) * up` or `gelu(x)`, rounded once to the dtype of x.

    Args:
        kind: One of KINDS.
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
