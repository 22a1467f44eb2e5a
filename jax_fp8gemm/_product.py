# SPDX-License-Identifier: Apache-2.0
"""The block-scaled product behind gemm and dot: batches, division among devices, implementation.

Operands may have leading dimensions. Each has a name, so that a batch of `lhs` alone folds into M,
a batch of `rhs` becomes groups of one launch, and all of them can be divided among devices.
Calls _ffi.matmul or _xla.product.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jax_fp8gemm import _checks, _dispatch, _distribute, _sharding, _xla

_BLOCK = 128


class Options(NamedTuple):
    """The static part of a product.

    Attributes:
        where: Public name, for messages.
        rhs_block: Block of `rhs`.
        result_dtype: Dtype of the result.
        implementation: As in the public functions.
        num_sms: Most SMs of one launch, or None.
        wanted: PartitionSpec of the result in an explicit mesh, or None.
        strict: Whether to refuse to move an operand in an explicit mesh.
        dtypes: Dtypes of lhs and rhs where their values come as bits (`uint8`), or None.
    """

    where: str
    rhs_block: tuple[int, int]
    result_dtype: np.dtype
    implementation: str | None
    num_sms: int | None = None
    wanted: jax.sharding.PartitionSpec | None = None
    strict: bool = True
    dtypes: tuple[np.dtype | None, np.dtype | None] = (None, None)


class Leads(NamedTuple):
    """Names of the leading dimensions of the result and of each operand, outermost first."""

    result: tuple[str, ...] = ()
    lhs: tuple[str, ...] = ()
    rhs: tuple[str, ...] = ()
    accumulator: tuple[str, ...] = ()


NO_LEADS = Leads()


def product(operands: tuple, options: Options, leads: Leads = NO_LEADS) -> jax.Array:
    """Returns `(*leads.result, M, N)`, the products of matrices.

    Args:
        operands: Values and scales of lhs `(*leads.lhs, M, K)`, of rhs `(*leads.rhs, N, K)`, and
            the accumulator `(*leads.accumulator, M, N)` or None.
        options: The static part.
        leads: Names of the leading dimensions. Each operand's are some of the result's, in order.
    """

    @custom_vmap
    def divided(*operands):
        operation = _operation(options, leads, operands[4] is not None)
        return _distribute.apply(operation, operands, wanted=options.wanted, strict=options.strict)

    @divided.def_vmap
    def batch(axis_size, in_batched, *operands):
        name = f"v{len(leads.result)}"  # no other dimension has it
        lhs = any(in_batched[0:2])
        rhs = any(in_batched[2:4])
        accumulator = operands[4] is not None and in_batched[4]
        needed = (lhs, lhs, rhs, rhs, accumulator)
        operands = tuple(
            jnp.broadcast_to(x, (axis_size, *x.shape)) if need and not is_batched else x
            for x, need, is_batched in zip(operands, needed, in_batched, strict=True)
        )
        deeper = Leads(
            (name, *leads.result),
            (name, *leads.lhs) if lhs else leads.lhs,
            (name, *leads.rhs) if rhs else leads.rhs,
            (name, *leads.accumulator) if accumulator else leads.accumulator,
        )
        return product(operands, options._replace(wanted=None), deeper), True

    return divided(*operands)


def _operation(options: Options, leads: Leads, accumulate: bool) -> _sharding.Operation:
    """Describes a product to the planner."""
    n_blocks = "n" if options.rhs_block == _checks.ROW_BLOCK else "n/128"
    layout = _sharding.Layout(
        operands=(
            (*leads.lhs, "m", "k"),
            (*leads.lhs, "m", "k/128"),
            (*leads.rhs, "n", "k"),
            (*leads.rhs, n_blocks, "k/128"),
            (*leads.accumulator, "m", "n") if accumulate else None,
        ),
        results=((*leads.result, "m", "n"),),
        names=("lhs", "lhs scales", "rhs", "rhs scales", "accumulator"),
        added=(4,),
    )
    exact = options._replace(result_dtype=jnp.dtype(jnp.float32))

    def partial(*operands):
        return local(operands[:4] + (None,), exact, leads)

    def finish(total, *operands):
        if operands[4] is not None:
            total += _xla.as_float32(_over_leads(operands[4], leads.accumulator, leads.result))
        return total.astype(options.result_dtype)

    return _sharding.Operation(
        where=options.where,
        layout=layout,
        compute=lambda *operands: local(operands, options, leads),
        partial=partial,
        finish=finish,
        key=options._replace(wanted=None),
    )


def local(operands: tuple, options: Options, leads: Leads = NO_LEADS) -> jax.Array:
    """Returns the products on one device, by the implementation for the platform lowered for."""
    lhs_dtype, rhs_dtype = options.dtypes
    lhs_values, lhs_scales, rhs_values, *others = operands
    operands = (_typed(lhs_values, lhs_dtype), lhs_scales, _typed(rhs_values, rhs_dtype), *others)
    sizes = dict(zip(leads.lhs, operands[0].shape, strict=False))
    sizes |= dict(zip(leads.rhs, operands[2].shape, strict=False))
    if operands[4] is not None:
        sizes |= dict(zip(leads.accumulator, operands[4].shape, strict=False))
    lead_shape = tuple(sizes[name] for name in leads.result)

    def xla(*operands):
        return _xla_product(operands, options, leads)

    def kernel(*operands, backend):
        if operands[0].size == 0 or operands[2].size == 0:  # nothing to multiply
            return xla(*operands)
        if leads.rhs:
            return _grouped_kernel(operands, options, leads, lead_shape, backend)
        return _folded_kernel(operands, options, leads, lead_shape, backend)

    return _dispatch.by_platform(
        options.where,
        options.implementation,
        operands,
        kernel=kernel,
        xla=xla,
        results=jax.ShapeDtypeStruct(
            (*lead_shape, operands[0].shape[-2], operands[2].shape[-2]), options.result_dtype
        ),
    )


def _typed(values: jax.Array, dtype: np.dtype | None) -> jax.Array:
    """Returns the values, of `dtype` where they came as bits."""
    return values if dtype is None else lax.bitcast_convert_type(values, dtype)


def _xla_product(operands: tuple, options: Options, leads: Leads) -> jax.Array:
    *factors, accumulator = operands
    have = tuple(name for name in leads.result if name in {*leads.lhs, *leads.rhs})
    out = _xla.product(
        *factors,
        rhs_block=options.rhs_block,
        axes=((*leads.lhs, "m", "k"), (*leads.rhs, "n", "k"), (*have, "m", "n")),
    )
    out = _over_leads(out, have, leads.result)
    if accumulator is not None:
        added = _over_leads(accumulator, leads.accumulator, leads.result)
        out = sum(jnp.broadcast_arrays(out, _xla.as_float32(added)))
    return out.astype(options.result_dtype)


def _folded_kernel(operands: tuple, options: Options, leads: Leads, lead_shape, backend: str):
    """Returns the products with one rhs by one launch, the leading dimensions folded into M."""
    lhs_values, lhs_scales, rhs_values, rhs_scales, accumulator = operands

    def rows(x, have):
        x = _over_leads(x, have, leads.result)
        x = jnp.broadcast_to(x, (*lead_shape, *x.shape[-2:]))
        return x.reshape(-1, x.shape[-1])

    lhs_values, lhs_scales = rows(lhs_values, leads.lhs), rows(lhs_scales, leads.lhs)
    if accumulator is not None:
        accumulator = rows(accumulator, leads.accumulator)
    operands = (lhs_values, lhs_scales, rhs_values, rhs_scales, accumulator)
    out = _one_matrix(operands, options, backend)
    return out.reshape(*lead_shape, -1, out.shape[-1])


def _grouped_kernel(operands: tuple, options: Options, leads: Leads, lead_shape, backend: str):
    """Returns the products with several rhs by one launch, a group for each rhs.

    What leads lhs and not rhs folds into the group's M.
    """
    grouped = [name for name in leads.result if name in leads.rhs]
    folded = [name for name in leads.result if name not in leads.rhs]
    order = [leads.result.index(name) for name in (*grouped, *folded)]
    num_groups = math.prod(lead_shape[i] for i in order[: len(grouped)])

    def groups(x, have):
        x = _over_leads(x, have, leads.result)
        x = jnp.broadcast_to(x, (*lead_shape, *x.shape[-2:]))
        x = x.transpose(*order, x.ndim - 2, x.ndim - 1)
        return x.reshape(num_groups, -1, x.shape[-1])

    lhs = [groups(x, leads.lhs) for x in operands[:2]]
    rhs = [x.reshape(num_groups, *x.shape[len(leads.rhs) :]) for x in operands[2:4]]
    accumulator = None if operands[4] is None else groups(operands[4], leads.accumulator)
    operands = (*lhs, *rhs, accumulator)
    if num_groups > _checks.MAX_GROUPS:
        out = lax.map(lambda each: _one_matrix(each, options, backend), operands)
    elif options.rhs_block == _checks.ROW_BLOCK:
        out = _k_grouped_batch(operands, options, backend)
    else:
        out = _masked_batch(operands, options, backend)
    out = out.reshape(*(lead_shape[i] for i in order), -1, out.shape[-1])
    back = [order.index(i) for i in range(len(order))]
    return out.transpose(*back, len(order), len(order) + 1)


def _one_matrix(operands: tuple, options: Options, backend: str) -> jax.Array:
    from jax_fp8gemm import _ffi  # here, so that importing the package loads no extension

    *factors, accumulator = operands
    return _ffi.matmul(
        "dense",
        *factors,
        None,
        accumulator,
        m=factors[0].shape[0],
        n=factors[2].shape[0],
        num_groups=1,
        d_rows=factors[0].shape[0],
        rhs_is_1x128=options.rhs_block == _checks.ROW_BLOCK,
        preferred_element_type=options.result_dtype,
        num_sms=options.num_sms,
        backend=backend,
    )


def _masked_batch(operands: tuple, options: Options, backend: str) -> jax.Array:
    """Returns a batch of products as groups all of whose rows count.

    An accumulator is added behind it: the kernel of these groups does not.
    """
    from jax_fp8gemm import _ffi  # here, so that importing the package loads no extension

    *factors, accumulator = operands
    batch, m, _ = factors[0].shape
    n = factors[2].shape[1]
    out = _ffi.matmul(
        "masked",
        *(x.reshape(-1, x.shape[-1]) for x in factors),
        lax.full_like(factors[0], m, jnp.int32, (batch,)),
        None,
        m=m,
        n=n,
        num_groups=batch,
        d_rows=batch * m,
        expected_m=m,
        preferred_element_type=options.result_dtype if accumulator is None else jnp.float32,
        num_sms=options.num_sms,
        backend=backend,
    ).reshape(batch, m, n)
    if accumulator is None:
        return out
    return (out + _xla.as_float32(accumulator)).astype(options.result_dtype)


def _k_grouped_batch(operands: tuple, options: Options, backend: str) -> jax.Array:
    """Returns a batch of products as groups of columns, for 1x128 blocks on both sides."""
    from jax_fp8gemm import _ffi  # here, so that importing the package loads no extension

    *factors, accumulator = operands
    batch, m, k = factors[0].shape
    n = factors[2].shape[1]

    def columns(x):
        """Puts the matrices of a batch side by side, each from a multiple of 128 on."""
        if x.dtype != jnp.float32:
            x = jnp.pad(x, ((0, 0), (0, 0), (0, -k % _BLOCK)))
        return x.transpose(1, 0, 2).reshape(x.shape[1], -1)

    out = _ffi.matmul(
        "k_grouped",
        *map(columns, factors),
        lax.full_like(factors[0], k, jnp.int32, (batch,)),
        None if accumulator is None else accumulator.reshape(batch * m, n),
        m=m,
        n=n,
        num_groups=batch,
        d_rows=batch * m,
        rhs_is_1x128=True,
        preferred_element_type=options.result_dtype,
        num_sms=options.num_sms,
        backend=backend,
    )
    return out.reshape(batch, m, n)


def _over_leads(x: jax.Array, have: tuple[str, ...], want: tuple[str, ...]) -> jax.Array:
    """Returns x with an extent of 1 for each leading dimension that it lacks."""
    sizes = dict(zip(have, x.shape, strict=False))
    return x.reshape(*(sizes.get(name, 1) for name in want), *x.shape[-2:])
