# SPDX-License-Identifier: Apache-2.0
"""Product: the block-scaled product of matrices, behind gemm, dot and dense weight gradients.

Operands may have batch dimensions. Each has a name, so that a batch of `lhs` alone folds into M, a
batch of `rhs` becomes groups of one launch, and all of them can be sharded.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_fp8gemm._src.native import calls
from jax_fp8gemm._src.native.gemm_problem import Problem, problem_of
from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.ops.quantizer import sum_quantizer
from jax_fp8gemm._src.transforms.operation import Layout, Operation, like
from jax_fp8gemm._src.xla import gemm as xla_gemm

_BLOCK = 128


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

    def result_types(self, *operands) -> jax.ShapeDtypeStruct:
        lhs, _, rhs, *_ = operands
        n = rhs.shape[-1 if self.rhs_is_kn else -2]
        shape = (*self._batch_shape(operands), lhs.shape[-2], n)
        return like(shape, self.result_dtype)

    def batch(self, apply, axis_size, in_batched, operands):
        dims = self.batch_dims
        name = f"v{len(dims.result)}"  # no other dimension has it
        lhs, rhs = any(in_batched[0:2]), any(in_batched[2:4])
        accumulator = operands[4] is not None and in_batched[4]
        needed = (lhs, lhs, rhs, rhs, accumulator)
        operands = tuple(
            jnp.broadcast_to(x, (axis_size, *x.shape)) if need and not is_batched else x
            for x, need, is_batched in zip(operands, needed, in_batched, strict=True)
        )
        deeper = BatchDims(
            (name, *dims.result),
            (name, *dims.lhs) if lhs else dims.lhs,
            (name, *dims.rhs) if rhs else dims.rhs,
            (name, *dims.accumulator) if accumulator else dims.accumulator,
        )
        return apply(dataclasses.replace(self, batch_dims=deeper), operands)

    def sum_quantizer(self):
        return sum_quantizer(self)

    def finish(self, total, *operands):
        if operands[4] is not None:
            dims = self.batch_dims
            total += xla_gemm.as_float32(over_dims(operands[4], dims.accumulator, dims.result))
        return total.astype(self.result_dtype)

    def xla(self, *operands) -> jax.Array:
        *factors, accumulator = self._typed(operands)
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
        out = over_dims(out, have, dims.result)
        if accumulator is not None:
            added = over_dims(accumulator, dims.accumulator, dims.result)
            both = jnp.broadcast_arrays(out, xla_gemm.as_float32(added))
            out = cast(jax.Array, sum(both))  # never the 0 of an empty sum
        return out.astype(self.result_dtype)

    def kernel(self, *operands, backend: str) -> jax.Array:
        if self.rhs_is_kn:
            rhs = (jnp.swapaxes(x, -1, -2) for x in operands[2:4])
            of_nk = dataclasses.replace(self, rhs_is_kn=False)
            return of_nk.kernel(*operands[:2], *rhs, operands[4], backend=backend)
        operands = self._typed(operands)
        if self.batch_dims.rhs:
            return self._grouped_kernel(operands, backend)
        # One rhs: all batch dimensions fold into M.
        lhs_values, lhs_scales, rhs_values, rhs_scales, accumulator = operands
        dims, shape = self.batch_dims, self._batch_shape(operands)

        def rows(x, have):
            x = over_dims(x, have, dims.result)
            x = jnp.broadcast_to(x, (*shape, *x.shape[-2:]))
            return x.reshape(-1, x.shape[-1])

        factors = [rows(lhs_values, dims.lhs), rows(lhs_scales, dims.lhs), rhs_values, rhs_scales]
        if accumulator is not None:
            accumulator = rows(accumulator, dims.accumulator)
        problem = self._problem("dense", factors, accumulator)
        options = {"num_sms": self.num_sms, "backend": backend}
        out = calls.matmul(problem, factors, None, accumulator, **options)
        return out.reshape(*shape, -1, out.shape[-1])

    def _problem(self, kind: str, factors: Sequence[jax.Array], accumulator, **fields) -> Problem:
        options = {"rhs_block": self.rhs_block, "result_dtype": self.result_dtype, **fields}
        return problem_of(kind, factors, accumulate=accumulator is not None, **options)

    def _typed(self, operands: tuple) -> tuple:
        """Returns the operands, with values in float8 where they came as bits."""

        def typed(values, dtype):
            return values if dtype is None else lax.bitcast_convert_type(values, dtype)

        lhs_values, lhs_scales, rhs_values, *others = operands
        lhs_dtype, rhs_dtype = self.dtypes
        return typed(lhs_values, lhs_dtype), lhs_scales, typed(rhs_values, rhs_dtype), *others

    def _batch_shape(self, operands: tuple) -> tuple[int, ...]:
        """Returns the extents of the result's batch dimensions."""
        dims = self.batch_dims
        sizes = dict(zip(dims.lhs, operands[0].shape, strict=False))
        sizes |= dict(zip(dims.rhs, operands[2].shape, strict=False))
        if operands[4] is not None:
            sizes |= dict(zip(dims.accumulator, operands[4].shape, strict=False))
        return tuple(sizes[name] for name in dims.result)

    def _grouped_kernel(self, operands: tuple, backend: str) -> jax.Array:
        """Returns the products with several rhs by one launch, a group for each rhs.

        What leads lhs and not rhs folds into the group's M.
        """
        dims, shape = self.batch_dims, self._batch_shape(operands)
        grouped = [name for name in dims.result if name in dims.rhs]
        folded = [name for name in dims.result if name not in dims.rhs]
        order = [dims.result.index(name) for name in (*grouped, *folded)]
        num_groups = math.prod(shape[i] for i in order[: len(grouped)])

        def groups(x, have):
            x = over_dims(x, have, dims.result)
            x = jnp.broadcast_to(x, (*shape, *x.shape[-2:]))
            x = x.transpose(*order, x.ndim - 2, x.ndim - 1)
            return x.reshape(num_groups, -1, x.shape[-1])

        lhs = [groups(x, dims.lhs) for x in operands[:2]]
        rhs = [x.reshape(num_groups, *x.shape[len(dims.rhs) :]) for x in operands[2:4]]
        accumulator = None if operands[4] is None else groups(operands[4], dims.accumulator)
        operands = (*lhs, *rhs, accumulator)
        if num_groups > checks.MAX_GROUPS:
            single = dataclasses.replace(self, dtypes=(None, None), batch_dims=BatchDims())
            out = lax.map(lambda each: single.kernel(*each, backend=backend), operands)
        elif self.rhs_block == checks.ROW_BLOCK:
            out = self._k_grouped_batch(operands, backend)
        else:
            out = self._masked_batch(operands, backend)
        out = out.reshape(*(shape[i] for i in order), -1, out.shape[-1])
        back = [order.index(i) for i in range(len(order))]
        return out.transpose(*back, len(order), len(order) + 1)

    def _masked_batch(self, operands: tuple, backend: str) -> jax.Array:
        """Returns a batch of products as groups all of whose rows are valid.

        An accumulator is added behind it: the kernel of these groups does not.
        """
        *factors, accumulator = operands
        batch, m, _ = factors[0].shape
        factors = [x.reshape(-1, x.shape[-1]) for x in factors]
        fields = {"num_groups": batch, "expected_m": m}
        if accumulator is not None:
            fields["result_dtype"] = jnp.float32
        problem = self._problem("masked", factors, None, **fields)
        masked_m = lax.full_like(factors[0], m, jnp.int32, (batch,))
        options = {"num_sms": self.num_sms, "backend": backend}
        out = calls.matmul(problem, factors, masked_m, **options).reshape(batch, m, -1)
        if accumulator is None:
            return out
        return (out + xla_gemm.as_float32(accumulator)).astype(self.result_dtype)

    def _k_grouped_batch(self, operands: tuple, backend: str) -> jax.Array:
        """Returns a batch of products as groups of columns, for 1x128 blocks on both sides."""
        *factors, accumulator = operands
        batch, m, k = factors[0].shape

        def columns(x):
            """Puts the matrices of a batch side by side, each from a multiple of 128 on."""
            if x.dtype != jnp.float32:
                x = jnp.pad(x, ((0, 0), (0, 0), (0, -k % _BLOCK)))
            return x.transpose(1, 0, 2).reshape(x.shape[1], -1)

        factors = [columns(x) for x in factors]
        if accumulator is not None:
            accumulator = accumulator.reshape(batch * m, -1)
        problem = self._problem("k_grouped", factors, accumulator, num_groups=batch)
        sizes = lax.full_like(factors[0], k, jnp.int32, (batch,))
        options = {"num_sms": self.num_sms, "backend": backend}
        return calls.matmul(problem, factors, sizes, accumulator, **options).reshape(batch, m, -1)


def over_dims(x: jax.Array, have: tuple[str, ...], want: tuple[str, ...]) -> jax.Array:
    """Returns x with an extent of 1 for each batch dimension that it lacks."""
    sizes = dict(zip(have, x.shape, strict=False))
    return x.reshape(*(sizes.get(name, 1) for name in want), *x.shape[-2:])
