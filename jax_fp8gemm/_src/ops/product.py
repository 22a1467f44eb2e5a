# SPDX-License-Identifier: Apache-2.0
"""Product: the block-scaled product of matrices, behind gemm, dot and dense weight gradients.

Operands may have batch dimensions. Each has a name, so that a batch of `lhs` alone folds into M, a
batch of `rhs` becomes groups of one launch, and all of them can be sharded.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_fp8gemm._src.native import calls
from jax_fp8gemm._src.native.gemm_problem import problem_of
from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.ops.quantizer import sum_quantizer
from jax_fp8gemm._src.tables import BLOCK, KINDS
from jax_fp8gemm._src.transforms.apply import batch_all
from jax_fp8gemm._src.transforms.operation import Layout, Operation
from jax_fp8gemm._src.xla import gemm as xla_gemm


class BatchDims(NamedTuple):
    """Names of the batch dimensions of the result and of each operand, outermost first."""

    result: tuple[str, ...] = ()
    lhs: tuple[str, ...] = ()
    rhs: tuple[str, ...] = ()
    accumulator: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Product(Operation):
    """The products of matrices: `(*batch.result, M, N)`.

    Operands: values and scales of lhs `(*batch.lhs, M, K)`, of rhs `(*batch.rhs, N, K)`, and the
    accumulator `(*batch.accumulator, M, N)` or None.

    Attributes:
        op_name: As in Operation.
        rhs_block: Block of `rhs`.
        result_dtype: Dtype of the result.
        implementation: As in Operation.
        num_sms: Most SMs of one launch, or None.
        dtypes: Dtypes of lhs and rhs where their values come as bits (`uint8`), or None.
        batch_dims: Names of the batch dimensions; each operand's are some of the result's, in
            order.
        rhs_is_kn: Whether rhs comes as `(*batch.rhs, K, N)`, with square blocks. Devices exchange
            it as it comes: once for a product with it and one with its transpose.
        reduce_dtype: As in Operation.
    """

    op_name: str
    rhs_block: tuple[int, int]
    result_dtype: np.dtype
    implementation: str | None
    num_sms: int | None = None
    dtypes: tuple[np.dtype | None, np.dtype | None] = (None, None)
    batch_dims: BatchDims = BatchDims()
    rhs_is_kn: bool = False
    reduce_dtype: np.dtype = np.dtype(np.float32)

    def layout(self, *operands) -> Layout:
        n_blocks = "n" if self.rhs_block == checks.ROW_BLOCK else "n/128"
        dims = self.batch_dims
        return Layout(
            operands=(
                (*dims.lhs, "m", "k"),
                (*dims.lhs, "m", "k/128"),
                (*dims.rhs, *self._rhs_dims("n", "k")),
                (*dims.rhs, *self._rhs_dims(n_blocks, "k/128")),
                (*dims.accumulator, "m", "n"),
            ),
            results=((*dims.result, "m", "n"),),
            names=("lhs", "lhs scales", "rhs", "rhs scales", "accumulator"),
            added=(4,),
            can_cut=("n", "k"),
        ).of_present(operands)

    def _rhs_dims(self, n: str, k: str) -> tuple[str, str]:
        """Returns names for the last two dimensions of rhs in their order."""
        return (k, n) if self.rhs_is_kn else (n, k)

    def batch(self, apply, axis_size, in_batched, operands):
        name = f"v{len(self.batch_dims.result)}"  # no other dimension has it
        lhs, rhs, accumulator = any(in_batched[0:2]), any(in_batched[2:4]), bool(in_batched[4])
        pairs = zip(self.batch_dims, (True, lhs, rhs, accumulator), strict=True)
        deeper = BatchDims(*((name, *dims) if has_it else dims for dims, has_it in pairs))
        have_it = (lhs, lhs, rhs, rhs, accumulator)
        shared = tuple(i for i, has_it in enumerate(have_it) if not has_it)
        operands = batch_all(axis_size, in_batched, operands, shared)
        return apply(dataclasses.replace(self, batch_dims=deeper), operands)

    def sum_quantizer(self):
        return sum_quantizer(self)

    def finish(self, total, *operands):
        if operands[4] is not None:
            dims = self.batch_dims
            total += xla_gemm.as_float32(over_dims(operands[4], dims.accumulator, dims.result))
        return total.astype(self.result_dtype)

    def xla(self, *operands) -> jax.Array:
        *factors, _ = self._typed(operands)
        dims = self.batch_dims
        have = tuple(name for name in dims.result if name in {*dims.lhs, *dims.rhs})
        out = xla_gemm.product(
            *factors,
            rhs_block=self.rhs_block,
            axes=(
                (*dims.lhs, "m", "k"),
                (*dims.rhs, *self._rhs_dims("n", "k")),
                (*have, "m", "n"),
            ),
        )
        return self.finish(over_dims(out, have, dims.result), *operands)

    def kernel(self, *operands, backend: str) -> jax.Array:
        """Returns the products by one launch: a group for each rhs, all other dimensions in M."""
        if self.rhs_is_kn:
            rhs = (jnp.swapaxes(x, -1, -2) for x in operands[2:4])
            of_nk = dataclasses.replace(self, rhs_is_kn=False)
            return of_nk.kernel(*operands[:2], *rhs, operands[4], backend=backend)
        lhs_values, lhs_scales, rhs_values, rhs_scales, accumulator = self._typed(operands)
        dims, shape = self.batch_dims, self.result_types(*operands).shape[:-2]
        # Dimensions of groups first.
        order = sorted(range(len(shape)), key=lambda i: dims.result[i] not in dims.rhs)
        num_groups = math.prod(rhs_values.shape[:-2])
        lead = (num_groups,) if dims.rhs else ()

        def rows(x, have):
            x = over_dims(x, have, dims.result)
            x = jnp.broadcast_to(x, (*shape, *x.shape[-2:]))
            x = x.transpose(*order, x.ndim - 2, x.ndim - 1)
            return x.reshape(*lead, -1, x.shape[-1])

        factors = [rows(lhs_values, dims.lhs), rows(lhs_scales, dims.lhs)]
        factors += [x.reshape(*lead, *x.shape[-2:]) for x in (rhs_values, rhs_scales)]
        if accumulator is not None:
            accumulator = rows(accumulator, dims.accumulator)
        adds = True
        if num_groups > checks.MAX_GROUPS:
            single = dataclasses.replace(self, dtypes=(None, None), batch_dims=BatchDims())
            every = (*factors, accumulator)
            out = lax.map(lambda each: single.kernel(*each, backend=backend), every)
        else:
            kind, sizes, expected_m = "dense", None, 0
            if lead:
                kind, factors, sizes, expected_m = self._groups(factors)
            # What the kernel does not add is added behind it.
            adds = accumulator is None or KINDS[kind].accumulates
            accumulator = accumulator if adds else None
            problem = problem_of(
                kind,
                factors,
                rhs_block=self.rhs_block,
                result_dtype=self.result_dtype if adds else jnp.float32,
                accumulate=accumulator is not None,
                num_groups=num_groups,
                expected_m=expected_m,
            )
            options = {"num_sms": self.num_sms, "backend": backend}
            out = calls.matmul(problem, factors, sizes, accumulator, **options)
        out = out.reshape(*(shape[i] for i in order), -1, out.shape[-1])
        out = out.transpose(*np.argsort(order), out.ndim - 2, out.ndim - 1)
        return out if adds else self.finish(out, *operands)

    def _groups(self, factors: list[jax.Array]) -> tuple:
        """Returns kind, factors, sizes and likely rows of the groups that a batch becomes."""
        batch, m, k = factors[0].shape
        if self.rhs_block == checks.ROW_BLOCK:
            kind, size, expected_m = "k_grouped", k, 0
            factors = list(map(_side_by_side, factors))
        else:
            kind, size, expected_m = "masked", m, m  # all rows are valid
            factors = [x.reshape(-1, x.shape[-1]) for x in factors]
        return kind, factors, lax.full_like(factors[0], size, jnp.int32, (batch,)), expected_m

    def _typed(self, operands: tuple) -> tuple:
        """Returns the operands, with values in float8 where they came as bits."""

        def typed(values, dtype):
            return values if dtype is None else lax.bitcast_convert_type(values, dtype)

        lhs_values, lhs_scales, rhs_values, *others = operands
        lhs_dtype, rhs_dtype = self.dtypes
        return typed(lhs_values, lhs_dtype), lhs_scales, typed(rhs_values, rhs_dtype), *others


def _side_by_side(x: jax.Array) -> jax.Array:
    """Returns the matrices of a batch as one, each from a multiple of 128 columns on."""
    if x.dtype != jnp.float32:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[-1] % BLOCK)))
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def over_dims(x: jax.Array, have: tuple[str, ...], want: tuple[str, ...]) -> jax.Array:
    """Returns x with an extent of 1 for each batch dimension that it lacks."""
    sizes = dict(zip(have, x.shape, strict=False))
    return x.reshape(*(sizes.get(name, 1) for name in want), *x.shape[-2:])
