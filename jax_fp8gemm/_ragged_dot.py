# SPDX-License-Identifier: Apache-2.0
"""ragged_dot: the product of a mixture of experts in FP8, with gradients, as jax.lax.ragged_dot."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_fp8gemm import _checks, _dispatch
from jax_fp8gemm._block_scaled import BlockScaled, as_block_scaled
from jax_fp8gemm._dot import ACTIVATION_NAME, COTANGENT, WEIGHT_NAME, Options, quantiser
from jax_fp8gemm._grouped_gemm import grouped_product
from jax_fp8gemm._k_grouped_gemm import k_grouped_product
from jax_fp8gemm._quantize_transposed import quantize_k_grouped, requantize_k_grouped
from jax_fp8gemm._residuals import Kept, keep

_WHERE = "ragged_dot"


def ragged_dot(
    lhs: jax.Array,
    rhs: jax.Array | BlockScaled,
    group_sizes: jax.Array,
    precision: Any = None,
    preferred_element_type: Any = None,
    group_offset: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Multiplies groups of rows, each by a weight of its own, in FP8, for training and inference.

    With the arguments of `jax.lax.ragged_dot`. Row t belongs to the group g with
    `sum(group_sizes[:g]) <= t < sum(group_sizes[:g + 1])`::

        y[t]  = Q1(lhs[t]) @ Q2(rhs[g])        and 0 where t >= sum(group_sizes)
        dlhs[t] = Q1(dy[t]) @ Q2(rhs[g]).T
        drhs[g] = Qt(Q1(lhs[rows of g])).T @ Qt(dy[rows of g])

    with Q1, Q2 and Qt as in `dot`; no scale covers two groups. The backward pass keeps Q1(lhs) and
    Q2(rhs), under the names that `dot` gives them.

    Args:
        lhs: `(T, K)`, `bfloat16`, `float16` or `float32`, sorted by group.
        rhs: `(G, K, N)` of one of these dtypes; or the weights as `BlockScaled` of shape
            `(G, N, K)` and block (128, 128), which get no gradient: zero.
        group_sizes: `(G,)` `int32`, read on the device only, as for `grouped_gemm`.
        precision: None or `jax.lax.Precision.DEFAULT`: operands are FP8 and there is no other one.
        preferred_element_type: Dtype of the result; None for the promoted one of the operands.
        group_offset: None; others are not supported, as in `jax.lax.ragged_dot`.
        implementation: None, "cuda", "xla" or "sim", as for `gemm`.

    Returns:
        `(T, N)`. Each gradient has the dtype of its operand.

    Raises:
        TypeError: An argument has an unsupported type or dtype; or forward mode is asked for.
        ValueError: Shapes disagree, `precision` is another one or `implementation` is unknown.
        NotImplementedError: `group_offset` is not None; or as `gemm`.
        jax.errors.JaxRuntimeError: As `gemm`.

    Transformations:
        As `dot`, but T and G must be whole, as for `grouped_gemm`: expert parallelism goes through
        `jax.shard_map`.

    Example:
        >>> y = ragged_dot(tokens, experts.swapaxes(1, 2), group_sizes)    # (T, K) -> (T, N)
    """
    implementation = _checks.implementation(_WHERE, implementation)
    _checks.default_precision(_WHERE, precision)
    if group_offset is not None:
        raise NotImplementedError(f"{_WHERE}: group_offset must be None, got {group_offset!r}.")
    _checks.array(_WHERE, "lhs", lhs, _checks.RESULT_DTYPES)
    _checks.matrix(_WHERE, "lhs", lhs)
    if isinstance(rhs, BlockScaled):
        rhs = as_block_scaled(_WHERE, "rhs", rhs, (_checks.SQUARE_BLOCK,))
        extents, k_dim, rhs_dtype = "G, N, K", 2, None
    else:
        _checks.array(_WHERE, "rhs", rhs, _checks.RESULT_DTYPES)
        extents, k_dim, rhs_dtype = "G, K, N", 1, jnp.dtype(rhs.dtype)
    _checks.groups(_WHERE, "rhs", rhs, extents)
    num_groups, k = rhs.shape[0], rhs.shape[k_dim]
    _checks.num_groups(_WHERE, "rhs", num_groups)
    if lhs.shape[1] != k:
        raise ValueError(
            f"{_WHERE}: rhs must have shape ({extents}) with the K of lhs = {lhs.shape[1]},"
            f" got {tuple(rhs.shape)}."
        )
    _checks.group_data(_WHERE, "group_sizes", group_sizes, (num_groups,), "G")
    lhs_dtype = jnp.dtype(lhs.dtype)
    if preferred_element_type is None:
        preferred_element_type = _checks.promoted(lhs_dtype, rhs_dtype or lhs_dtype)
    result_dtype = _checks.dtype_of(
        _WHERE, "preferred_element_type", preferred_element_type, _checks.RESULT_DTYPES
    )
    options = Options(_WHERE, result_dtype, lhs_dtype, rhs_dtype, implementation)
    return _apply(*_dispatch.unify_varying((lhs, rhs, group_sizes)), options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _ragged_dot(lhs, rhs, group_sizes, options: Options) -> jax.Array:
    return _forward(lhs, rhs, group_sizes, options)[0]


# Compiled as one program when called outside of jax.jit, inlined when called inside.
_apply = jax.jit(_ragged_dot, static_argnums=3, inline=True)


def _forward(lhs, rhs, group_sizes, options: Options):
    """Returns the product and what the backward pass needs: both operands in FP8, and the sizes."""
    quantised = quantiser(options)
    lhs = quantised(lhs, _checks.ROW_BLOCK, "pow2", name="lhs", axes=("t", "k"))
    lhs = keep(lhs, ACTIVATION_NAME)
    if isinstance(rhs, BlockScaled):
        rhs = keep(_transposed(rhs))
    else:
        rhs = quantised(rhs, _checks.SQUARE_BLOCK, name="rhs", axes=("k", "n"))
        rhs = keep(rhs, WEIGHT_NAME)
    y = grouped_product(
        options.where,
        lhs.restore(),
        _transposed(rhs).restore(),
        group_sizes,
        options.result_dtype,
        options.implementation,
    )
    return y, (lhs, rhs, group_sizes)


# Compiled as one program where jax.grad is called outside of jax.jit.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _backward(options: Options, residuals, dy: jax.Array):
    lhs, rhs, group_sizes = residuals
    lhs, rhs = lhs.restore(), rhs.restore()
    dlhs = grouped_product(
        options.where,
        quantiser(options)(dy, _checks.ROW_BLOCK, name=COTANGENT, axes=("t", "n")),
        rhs,
        group_sizes,
        options.x_dtype,
        options.implementation,
    )
    if options.w_dtype is None:
        return dlhs, None, None
    drhs = k_grouped_product(
        options.where,
        requantize_k_grouped(lhs, group_sizes, options.implementation),
        quantize_k_grouped(dy, group_sizes, implementation=options.implementation),
        group_sizes,
        None,
        jnp.float32,
        options.implementation,
    )
    return dlhs, drhs.astype(options.w_dtype), None


_ragged_dot.defvjp(_forward, _backward)


def _transposed(rhs: BlockScaled | Kept) -> BlockScaled | Kept:
    """Returns the transpose of every group; blocks of 128x128 stay blocks."""
    return jax.tree.map(lambda leaf: lax.transpose(leaf, (0, 2, 1)), rhs)
