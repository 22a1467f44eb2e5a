# SPDX-License-Identifier: Apache-2.0
"""The gradient of a dense weight: activations times gradients, summed over tokens.

Called by _dot.py; calls _product. Both operands are scaled anew per 128 tokens on the device that
has them, so that tokens may be divided anywhere and one sum is all that devices exchange.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jax_fp8gemm import _checks, _distribute, _product, _quantizer, _sharding
from jax_fp8gemm._residuals import Kept

_E4M3 = jnp.dtype(jnp.float8_e4m3fn)


class Options(NamedTuple):
    """The static part: name for messages, result's dtype and division, implementation."""

    where: str
    result_dtype: np.dtype
    implementation: str | None
    wanted: jax.sharding.PartitionSpec | None = None


def weight_gradient(x: Kept, dy: jax.Array, options: Options, num_batch: int = 0) -> jax.Array:
    """Returns `(*batch, K, N)`, the sum over tokens of the outer products of x and dy.

    Args:
        x: `(*batch, *tokens, K)` in e4m3 with block (1, 128). Its scales are best powers of two:
            scaling along tokens then rounds nothing again but what becomes subnormal.
        dy: `(*batch, *tokens, N)`.
        options: The static part.
        num_batch: How many of the leading dimensions are `batch`.
    """

    @custom_vmap
    def divided(*operands):
        operation = _operation(options, num_batch, operands[2].ndim - 1 - num_batch)
        return _distribute.apply(operation, operands, wanted=options.wanted, strict=False)

    @divided.def_vmap
    def batch(axis_size, in_batched, *operands):
        bits, scales, dy = (
            x if is_batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            for x, is_batched in zip(operands, in_batched, strict=True)
        )
        batched = dataclasses.replace(x, bits=bits, scales=scales)
        return weight_gradient(batched, dy, options._replace(wanted=None), num_batch + 1), True

    return divided(x.bits, x.scales, dy)


def _operation(options: Options, num_batch: int, num_tokens: int) -> _sharding.Operation:
    batch = _sharding.names("v", num_batch)
    leads = (*batch, *_sharding.names("t", num_tokens))

    def compute(*operands):
        return _on_one_device(*operands, options, batch)

    def partial(*operands):
        exact = options._replace(result_dtype=jnp.dtype(jnp.float32))
        return _on_one_device(*operands, exact, batch)

    return _sharding.Operation(
        where=options.where,
        layout=_sharding.Layout(
            operands=((*leads, "k"), (*leads, "k/128"), (*leads, "n")),
            results=((*batch, "k", "n"),),
            names=("x", "x scales", "dy"),
        ),
        compute=compute,
        partial=partial,
        finish=lambda total, *_: total.astype(options.result_dtype),
        key=("weight_gradient", *options._replace(wanted=None)),
    )


def _on_one_device(x_bits, x_scales, dy, options: Options, batch: tuple[str, ...]) -> jax.Array:
    def along_tokens(leaves, scale_format):
        # Behind a barrier, or XLA widens them early for all that reads them, and keeps that.
        leaves = tuple(
            x.reshape(*x.shape[: len(batch)], math.prod(x.shape[len(batch) : -1]), x.shape[-1])
            for x in lax.optimization_barrier(leaves)
        )
        return _quantizer.on_one_device(
            (*leaves, *(None,) * (3 - len(leaves))),
            _quantizer.Options(
                options.where,
                "transposed",
                _E4M3,
                scale_format,
                options.implementation,
            ),
        )

    return _product.local(
        (
            *along_tokens((lax.bitcast_convert_type(x_bits, _E4M3), x_scales), "pow2"),
            *along_tokens((dy,), "float32"),
            None,
        ),
        _product.Options(
            options.where, _checks.ROW_BLOCK, options.result_dtype, options.implementation
        ),
        _product.Leads(batch, batch, batch),
    )
