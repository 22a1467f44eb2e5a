# SPDX-License-Identifier: Apache-2.0
"""Quantizer: the operation behind quantize, quantize_transposed and quantize_k_grouped."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_fp8gemm._src.native import calls
from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.transforms.apply import apply, batch_all
from jax_fp8gemm._src.transforms.operation import InRule, Layout, Operation, like
from jax_fp8gemm._src.transforms.partitioner import names
from jax_fp8gemm._src.xla import activation as xla_activation
from jax_fp8gemm._src.xla import gemm as xla_gemm
from jax_fp8gemm._src.xla import grouped as xla_grouped
from jax_fp8gemm._src.xla import quantize as xla_quantize

SCALE_FORMATS = ("float32", "pow2")
_BLOCK = 128
# Kind of quantizer by block.
KINDS = {checks.ROW_BLOCK: "rows", checks.SQUARE_BLOCK: "blocks"}
_BLOCKS = {kind: block for block, kind in KINDS.items()}
_BLOCKS |= dict.fromkeys(xla_activation.KINDS, checks.ROW_BLOCK)
# Kinds of two, whose first is transposed and whose second is "rows".
_WITH_ROWS = {"rows_and_transposed": "transposed", "rows_and_k_grouped": "k_grouped"}


class Operands(NamedTuple):
    """What a quantizer takes.

    Attributes:
        x: `(..., R, K)` in floating point; or for transposed kinds its values in float8.
        beside: Of values in float8 the scales, with block (1, 128). Of a gated activation what x is
            multiplied by, as x, or None where that lies behind x in each row of `2 * K`. Of a norm
            the float32 factors of the columns, `(K,)`, or `(..., K)` of each matrix its own.
        group_sizes: `(..., G)` for groups. Along rows, those in no group are not read, and are
            zeros.
        row_factors: `(..., R)` float32, of a norm.
    """

    x: jax.Array
    beside: jax.Array | None = None
    group_sizes: jax.Array | None = None
    row_factors: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Quantizer(Operation):
    """Values and scales of an array, of what Operands say.

    Attributes:
        op_name: As in Operation.
        kind: "rows", "blocks", "transposed" or "k_grouped"; or "rows_and_transposed" or
            "rows_and_k_grouped", the results of both from one reading of x, those of the rows last;
            or an activation or norm, "rows" of it.
        dtype: Dtype of the values.
        scale_format: One of SCALE_FORMATS.
        implementation: As in Operation.
        name: What x is called in messages.
        axes: What its last two dimensions are called.
        row_axes: Mesh axes over which one device's part of the rows is one of several, whose sizes
            are those of all.
    """

    op_name: str
    kind: str
    dtype: np.dtype
    scale_format: str
    implementation: str | None
    name: str = "x"
    axes: tuple[str, str] = ("r", "k")
    row_axes: tuple[str, ...] = ()

    @property
    def _transposed(self) -> str | None:
        """The transposed kind that this is or has, if any."""
        kind = _WITH_ROWS.get(self.kind, self.kind)
        return None if kind in _BLOCKS else kind

    @property
    def _has_rows(self) -> bool:
        return self.kind in _WITH_ROWS

    def _single(self, kind: str) -> "Quantizer":
        """Returns one of the two that this is."""
        return dataclasses.replace(self, kind=kind)

    def layout(self, *operands) -> Layout:
        x, beside, *_ = operands
        batch = names("b", x.ndim - 2)
        dims, replicated = ("t", "r"), ("g",)  # each device reads all sizes
        if self._transposed is None:
            results = dims = rows, columns = self.axes
            scale_rows = rows if _BLOCKS[self.kind] == checks.ROW_BLOCK else f"{rows}/128"
            if self._is_joined(operands):
                dims, replicated = (rows, "h"), (columns, "h", "g")
            results = (results, (scale_rows, f"{columns}/128"))
        elif self._transposed == "transposed":
            results = (("r", "t"), ("r", "t/128"))
        else:
            results, replicated = (("r", "w"), ("r", "w/128")), ("t", "g", "w")
        if self._has_rows:
            results += (("t", "r"), ("t", "r/128"))
        beside_dims = (*batch, *(dims if self._is_activation else ("t", "r/128")))
        beside_name = "up" if self._is_activation else "x scales"
        if self._is_norm:
            lead = () if beside.ndim == 1 else batch
            beside_dims, beside_name = (*lead, dims[1]), "weight"
        return Layout(
            operands=((*batch, *dims), beside_dims, (*batch, "g"), (*batch, dims[0])),
            results=tuple((*batch, *dims) for dims in results),
            names=(self.name, beside_name, "group_sizes", "row factors"),
            replicated=replicated,
            can_cut=self._can_cut(dims, operands),
        ).of_present(operands)

    def _can_cut(self, dims: tuple[str, str], operands: tuple) -> tuple[str, ...]:
        """Returns the axes along which devices may have parts of a block."""
        if self._has_rows:
            return ("r",)
        if self._transposed is None:
            return () if self._is_joined(operands) else dims
        return ("r",) if self._reads_scales(operands) else dims

    def _reads_scales(self, operands: tuple) -> bool:
        return self._transposed is not None and operands[1] is not None

    @property
    def _is_activation(self) -> bool:
        return self.kind in xla_activation.KINDS

    @property
    def _is_norm(self) -> bool:
        return self.kind == xla_activation.NORM

    def _is_joined(self, operands: tuple) -> bool:
        return self.kind in xla_activation.GATED and operands[1] is None

    def placed(self, axes):
        if self._transposed is not None or not axes.get(self.axes[0]):
            return self
        return dataclasses.replace(self, row_axes=axes[self.axes[0]])

    def _own_sizes(self, operands: tuple) -> tuple:
        """Returns the operands with sizes that say what is valid of one device's rows."""
        x, beside, group_sizes, row_factors = operands
        if group_sizes is None or not self.row_axes:
            return operands
        num_rows = x.shape[-2]
        count = xla_grouped.num_valid(group_sizes, num_rows * lax.axis_size(self.row_axes))
        own = jnp.clip(count - lax.axis_index(self.row_axes) * num_rows, 0, num_rows)
        return x, beside, own[..., None], row_factors

    def local(self, *operands):
        plain = dataclasses.replace(self, row_axes=())
        return super(Quantizer, plain).local(*self._own_sizes(operands))

    def result_types(self, *operands) -> tuple:
        x, _, group_sizes, _ = operands
        *batch, rows, columns = x.shape
        block_rows = _BLOCK if self.kind == "blocks" else 1
        if self._is_joined(operands):
            columns //= 2
        if self._transposed is not None:
            rows, columns = columns, rows
        if self._transposed == "k_grouped":
            columns = _BLOCK * xla_quantize.aligned_blocks(columns, group_sizes.shape[-1])
        scales = (*batch, -(-rows // block_rows), -(-columns // _BLOCK))
        types = like((*batch, rows, columns), self.dtype), like(scales, jnp.float32)
        return types + self._single("rows").result_types(*Operands(x)) if self._has_rows else types

    @property
    def is_left_to_xla(self) -> bool:
        return self.implementation == "xla"

    def batch(self, apply, axis_size, in_batched, operands):
        x, beside, *others = operands
        if not self._is_norm:
            return apply(self, batch_all(axis_size, in_batched, operands))
        if beside.ndim == 1 and not in_batched[1]:
            return apply(self, batch_all(axis_size, in_batched, operands, shared=(1,)))
        # One for each matrix there is then.
        lead = x.shape[int(in_batched[0]) : -2]
        if in_batched[1] and beside.ndim == 2:
            beside = beside.reshape(axis_size, *(1,) * len(lead), beside.shape[-1])
        beside = jnp.broadcast_to(beside, (axis_size, *lead, beside.shape[-1]))
        in_batched = (in_batched[0], True, *in_batched[2:])
        return apply(self, batch_all(axis_size, in_batched, (x, beside, *others)))

    def jvp(self, primals, tangents):
        # Derivatives are left to XLA. Scales have none, and may be of blocks on several devices.
        results = apply(self, primals)
        computed = self.xla
        if self._transposed != "k_grouped" and not self._reads_scales(primals):
            computed = functools.partial(self._by_scales, results[1::2])
        return results, jax.jvp(computed, primals, tangents)[1]

    def _by_scales(self, scales: tuple[jax.Array, ...], *operands) -> tuple[jax.Array, ...]:
        """Returns the results from plain JAX, given the scales of each."""
        if self._transposed is None:
            arrays, block = [self._rows(operands)], _BLOCKS[self.kind]
        else:
            x, _, group_sizes, _ = operands
            arrays, block = [jnp.swapaxes(x, -1, -2)], checks.ROW_BLOCK
            if self._has_rows:
                arrays.append(xla_quantize.valid_rows(x, group_sizes))
        last = (self.dtype, self.scale_format)
        results = []
        for x, given in zip(arrays, scales, strict=True):
            own = xla_gemm.per_element(given, block, x.shape)
            results += [xla_quantize.block_values(x, own, (1, 1), *last), given]
        return tuple(results)

    def xla(self, *operands) -> tuple[jax.Array, ...]:
        x, x_scales, group_sizes, _ = operands
        last = (self.dtype, self.scale_format)
        if self._transposed is None:
            return xla_quantize.quantize(self._rows(operands), _BLOCKS[self.kind], *last)
        leaves = (x,) if x_scales is None else (x, x_scales)
        results = xla_quantize.quantize_transposed(leaves, group_sizes, *last)
        if self._has_rows:
            rows = xla_quantize.valid_rows(x, group_sizes)
            results += xla_quantize.quantize(rows, checks.ROW_BLOCK, *last)
        return results

    def _rows(self, operands: tuple) -> jax.Array:
        """Returns what is quantized along rows."""
        x, beside, group_sizes, row_factors = operands
        if self._is_norm:
            x = xla_activation.normalize(x, row_factors, beside)
        elif self._is_activation:
            x = xla_activation.activate(self.kind, x, beside)
        return xla_quantize.valid_rows(x, group_sizes)

    def local_of_cut(self, cut, *operands) -> tuple[jax.Array, ...]:
        """Shares the largest magnitude of a block among its devices; in plain JAX."""
        if self._reads_scales(operands):
            return super().local_of_cut(cut, *operands)
        x, _, group_sizes, _ = operands = self._own_sizes(operands)
        if self._has_rows:
            # Only blocks along rows are cut.
            rows = dataclasses.replace(self, kind="rows", axes=("t", "r"))
            return (
                *self._single(_WITH_ROWS[self.kind]).local(*operands),
                *rows.local_of_cut(cut, *Operands(xla_quantize.valid_rows(x, group_sizes))),
            )
        is_transposed = self.kind == "transposed"
        if not is_transposed:
            x = self._rows(operands)
        dims = ("t", "r") if is_transposed else self.axes
        mesh_axes = tuple(cut.get(axis, ()) for axis in dims)
        block = (_BLOCK, 1) if is_transposed else _BLOCKS[self.kind]
        leaves = xla_quantize.quantize_part(x, block, self.dtype, self.scale_format, mesh_axes)
        values, scales = (jnp.swapaxes(x, -1, -2) if is_transposed else x for x in leaves)
        return values, scales

    def kernel(self, *operands, backend: str) -> tuple[jax.Array, ...]:
        """Calls the kernel with batch dimensions merged to one, or into the rows."""
        x, beside, group_sizes, row_factors = operands
        is_rows = self._transposed is None and _BLOCKS[self.kind] == checks.ROW_BLOCK
        are_alike = group_sizes is None and not (self._is_norm and beside.ndim > 1)
        batch = 1 if is_rows and are_alike else math.prod(x.shape[:-2])
        factors = ()
        if self._is_norm:
            columns = x.shape[-1]
            factors = (
                row_factors.reshape(batch, -1),
                jnp.broadcast_to(beside.reshape(-1, columns), (batch, columns)),
            )
            beside = None

        def merged(y):
            return y.reshape(batch, -1, y.shape[-1])

        types = self.result_types(*operands)
        # Scales along rows, and rows beside a transposed kind, are those of one matrix.
        counts = (batch, 1 if is_rows else batch, 1, 1)[: len(types)]
        merged_types = [
            t.update(shape=(count, math.prod(t.shape[:-1]) // count, t.shape[-1]))
            for t, count in zip(types, counts, strict=True)
        ]
        results = calls.quantize(
            self.kind,
            merged(x),
            None if beside is None else merged(beside),
            None if group_sizes is None else group_sizes.reshape(batch, -1),
            merged_types,
            factors=factors,
            scale_format=self.scale_format,
            backend=backend,
        )
        return tuple(y.reshape(t.shape) for y, t in zip(results, types, strict=True))


def sum_quantizer(op: Operation) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]] | None:
    """Returns what rounds partial results of a product to FP8, if its sums over devices want it."""
    if op.reduce_dtype not in checks.FP8_DTYPES:
        return None
    quantizer = Quantizer(op.op_name, "rows", op.reduce_dtype, "float32", op.implementation)
    return lambda partial: cast(tuple, quantizer.local(*Operands(partial)))


def validated(
    op_name: str, kind: str, dtype: Any, scale_format: str, implementation: str | None
) -> Quantizer:
    """Returns a quantizer with the options of a public function."""
    dtype = checks.dtype_of(op_name, "dtype", dtype, checks.FP8_DTYPES)
    checks.one_of(op_name, "scale_format", scale_format, SCALE_FORMATS)
    checks.implementation(op_name, implementation)
    return Quantizer(op_name, kind, dtype, scale_format, implementation)


@dataclasses.dataclass(frozen=True)
class RuleQuantizer(InRule, Quantizer):
    """A quantizer inside a derivative rule, behind which rows in no group are not read."""

    def once(self, in_batched, operands):
        x, beside, group_sizes, row_factors = operands
        of_array, of_beside, of_sizes, of_factors = in_batched
        if self._transposed or not of_sizes or of_array or of_beside or of_factors:
            return None
        # Of groups of each example: the most rows that one of them has.
        counts = xla_grouped.num_valid(group_sizes, x.shape[-2])
        return Operands(x, beside, jnp.max(counts, 0, initial=0)[..., None], row_factors)
