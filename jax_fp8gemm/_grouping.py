# SPDX-License-Identifier: Apache-2.0
"""What the grouped products share: options, the call of a kernel, and folding batches into groups.

Called by _grouped_gemm.py, _masked_gemm.py and _k_grouped_gemm.py; calls _ffi.matmul.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from jax_fp8gemm import _checks, _dispatch, _distribute, _sharding
from jax_fp8gemm._block_scaled import BlockScaled, as_block_scaled

Operand = BlockScaled | tuple[jax.Array, jax.Array]
# Rows of a tile at most, so that no tile of a contiguous layout holds two groups.
CONTIGUOUS_ALIGNMENT = 128


class Options(NamedTuple):
    """The static part of a call."""

    where: str
    result_dtype: np.dtype
    implementation: str | None
    num_sms: int | None
    expected_m: int = 0
    zero_padding: bool = False


def options(
    where: str, preferred_element_type: Any, implementation: str | None, num_sms: int | None
) -> Options:
    """Returns the validated options that every grouped product has."""
    return Options(
        where,
        _checks.dtype_of(
            where, "preferred_element_type", preferred_element_type, _checks.RESULT_DTYPES
        ),
        _checks.implementation(where, implementation),
        _checks.num_sms(where, num_sms),
    )


def weights(where: str, rhs: Operand) -> BlockScaled:
    """Returns the validated `(G, N, K)` weights of a grouped product."""
    rhs = as_block_scaled(where, "rhs", rhs, (_checks.SQUARE_BLOCK,))
    _checks.groups(where, "rhs", rhs, "G, N, K")
    _checks.addressable(where, "rhs", rhs.shape)
    return rhs


def not_differentiable(where: str, function: Callable) -> Callable:
    """Returns `function` so that differentiating it raises TypeError."""
    guarded = jax.custom_jvp(function)

    @guarded.defjvp
    def refuse(primals, tangents):
        raise TypeError(
            f"{where} is not differentiable: float8 operands have no useful gradients. Wrap the"
            f" computation from quantize to {where} in jax.custom_vjp, or stop the gradient at its"
            " operands with jax.lax.stop_gradient."
        )

    return guarded


def apply(call: Callable, operands: tuple, options: Options) -> jax.Array:
    """Returns `call(options)(*operands)`, as one program and not differentiable."""
    return _apply(_dispatch.unify_varying(operands), call, options)


# Compiled as one program when called outside of jax.jit, inlined when called inside.
@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _apply(operands: tuple, call: Callable, options: Options) -> jax.Array:
    return not_differentiable(options.where, call(options))(*operands)


def divided(compute: Callable, options: Options, layout: _sharding.Layout, operands: tuple):
    """Returns `compute(options, operands)`, divided among devices as the operands are."""
    present = zip(layout.operands, operands, strict=True)
    layout = layout._replace(operands=tuple(dims if x is not None else None for dims, x in present))
    exact = options._replace(result_dtype=np.dtype(np.float32))
    operation = _sharding.Operation(
        where=options.where,
        layout=layout,
        compute=lambda *operands: compute(options, operands),
        partial=lambda *operands: compute(exact, operands),
        finish=lambda total, *_: total.astype(options.result_dtype),
        key=options,
    )
    return _distribute.apply(operation, operands)


def by_platform(
    options: Options, operands: tuple, result_shape: tuple[int, ...], *, kernel, xla
) -> jax.Array:
    """Returns the product by the implementation that belongs to the platform lowered for.

    Where there is nothing to multiply or to return, it is zeros or the accumulator.
    """
    for x in jax.tree.leaves(operands):
        if not _checks.is_static(x.shape):
            raise NotImplementedError(
                f"{options.where}: shapes of groups must be numbers, got {tuple(x.shape)}."
            )
    if 0 in result_shape or 0 in operands[0].shape or 0 in operands[2].shape:
        xla = kernel = functools.partial(_nothing_to_multiply, result_shape, options)
    return _dispatch.by_platform(
        options.where,
        options.implementation,
        operands,
        kernel=kernel,
        xla=xla,
        results=jax.ShapeDtypeStruct(result_shape, options.result_dtype),
    )


def _nothing_to_multiply(shape, options, lhs_values, *others, backend=None) -> jax.Array:
    accumulator = others[4] if len(others) > 4 else None
    if accumulator is not None:
        return accumulator
    return jax.lax.full_like(lhs_values, 0, options.result_dtype, shape)


def kernel_call(kind: str, options: Options, operands: tuple, backend: str, **extents) -> jax.Array:
    """Returns what a kernel computes; operands as `_ffi.matmul`, but groups may be a dimension."""
    from jax_fp8gemm import _ffi  # here, so that importing the package loads no extension

    lhs_values, lhs_scales, rhs_values, rhs_scales, group_data, *accumulator = operands
    return _ffi.matmul(
        kind,
        *map(as_matrix, (lhs_values, lhs_scales, rhs_values, rhs_scales)),
        group_data,
        *(accumulator or (None,)),
        expected_m=options.expected_m,
        zero_padding=options.zero_padding,
        preferred_element_type=options.result_dtype,
        num_sms=options.num_sms,
        backend=backend,
        **extents,
    )


def as_matrix(x: jax.Array) -> jax.Array:
    """Returns x with all but its last dimension merged."""
    return merge_leading(x) if x.ndim == 3 else x


# ---- Batches: vmap makes one call of a batch by naming a group for each of its rows -------------


def fold_batches(
    single: Callable,
    fold: Callable,
    call: Callable[[Options], Callable],
    options: Options,
    layout: _sharding.Layout,
) -> None:
    """Makes `fold` the batching rule of the `custom_vmap` that is `call(options)`."""

    @single.def_vmap
    def rule(axis_size, in_batched, *operands):
        if _distribute.divides_explicitly(*operands):
            return _on_each_device(call, options, layout, (in_batched,))(*operands), True
        return fold(axis_size, in_batched, *operands)


def _on_each_device(
    call: Callable[[Options], Callable], options: Options, layout: _sharding.Layout, batches: tuple
) -> Callable:
    """Returns `call(options)` of batches in an explicit mesh: each device folds what it has.

    Merged with another dimension, a divided batch would have to be gathered. Of each batch, the
    innermost first, `batches` says which operands have it in front.
    """

    def compute(options, operands):
        function = call(options)
        for in_batched in batches:
            in_axes = [0 if is_batched else None for is_batched in in_batched]
            function = jax.vmap(function, in_axes)
        return function(*operands)

    @custom_vmap
    def several(*operands):
        batched = layout
        for i, in_batched in enumerate(batches):
            batched = batched.batched(f"batch{i}", in_batched)
        return divided(compute, options, batched, operands)

    @several.def_vmap
    def rule(_, in_batched, *operands):
        return _on_each_device(call, options, layout, (*batches, in_batched))(*operands), True

    return several


def batch_all(axis_size: int, in_batched, operands: tuple, shared: tuple[int, ...] = ()) -> tuple:
    """Returns the operands, each present one with the batch in front but those of `shared`."""
    return tuple(
        x if x is None or is_batched or i in shared else jnp.broadcast_to(x, (axis_size, *x.shape))
        for i, (x, is_batched) in enumerate(zip(operands, in_batched, strict=True))
    )


def shared_weights(in_batched) -> tuple[int, ...]:
    """Returns the positions of the weights among the operands if no batch has its own, or none."""
    return () if in_batched[2] or in_batched[3] else (2, 3)


def merge_leading(x: jax.Array) -> jax.Array:
    """Returns x with its two leading dimensions merged."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def fold_ids(ids: jax.Array, num_groups: int) -> jax.Array:
    """Returns groups of a batch, `(B, T)`, as groups of all batches together; -1 where none."""
    first = jnp.arange(ids.shape[0], dtype=jnp.int32)[:, None] * num_groups
    return jnp.where((ids >= 0) & (ids < num_groups), ids + first, -1)


def fold_rows(ragged: Callable, ids: jax.Array, operands: tuple[jax.Array, ...]) -> jax.Array:
    """Returns the products of a batch of rows in any order as one call: sorted by group, and back.

    Args:
        ragged: `ragged(lhs_values, lhs_scales, rhs_values, rhs_scales, group_sizes)`.
        ids: `(B, T)` the group of each row; another number where it has none and gives zeros.
        operands: `(B, T, K)` values and scales of the rows; values and scales of the weights,
            `(G, N, K)` or `(B, G, N, K)`.

    Returns:
        `(B, T, N)`.
    """
    *rows, rhs_values, rhs_scales = operands
    num_groups, n, _ = rhs_values.shape[-3:]
    if rhs_values.ndim == 4:
        ids = fold_ids(ids, num_groups)
        rhs_values, rhs_scales = merge_leading(rhs_values), merge_leading(rhs_scales)
        num_groups = rhs_values.shape[0]
    shape = (*ids.shape, n)
    ids = jnp.where((ids >= 0) & (ids < num_groups), ids, num_groups).reshape(-1)
    source = jnp.argsort(ids, stable=True).astype(jnp.int32)
    target = jnp.zeros_like(source).at[source].set(jnp.arange(len(ids), dtype=jnp.int32))
    sizes = jnp.zeros_like(ids, shape=(num_groups,)).at[ids].add(1, mode="drop")
    rows = [merge_leading(x)[source] for x in rows]
    return ragged(*rows, rhs_values, rhs_scales, sizes)[target].reshape(shape)
