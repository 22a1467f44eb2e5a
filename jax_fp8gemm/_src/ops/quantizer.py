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
from jax_fp8gemm._src.tables import BLOCK
from jax_fp8gemm._src.transforms.apply import apply, batch_all
from jax_fp8gemm._src.transforms.operation import InRule, Layout, Operation, like
from jax_fp8gemm._src.transforms.partitioner import names
from jax_fp8gemm._src.xla import activation as xla_activation
from jax_fp8gemm._src.xla import gemm as xla_gemm
from jax_fp8gemm._src.xla import grouped as xla_grouped
from jax_fp8gemm._src.xla import quantize as xla_quantize

SCALE_FORMATS = ("float32", "pow2")
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
        scales: Of values in float8, with block (1, 128).
        group_sizes: `(..., G)` for groups. Along rows, those in no group are not read, and are
            zeros.
        up: What a gated activation multiplies, as x; None where that lies behind x in each row of
            `2 * K`.
        row_factors: `(..., R)` float32, of a norm.
        column_factors: `(K,)` float32, or `(..., K)` of each matrix its own, of a norm.
    """

    x: jax.Array
    scales: jax.Array | None = None
    group_sizes: jax.Array | None = None
    up: jax.Array | None = None
    row_factors: jax.Array | None = None
    column_factors: jax.Array | None = None


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

    def layout(self, *operands) -> Layout:
        given = Operands(*operands)
        batch = names("b", given.x.ndim - 2)
        dims, replicated = ("t", "r"), ("g",)  # each device reads all sizes
        if self._transposed is None:
            results = dims = rows, columns = self.axes
            scale_rows = rows if _BLOCKS[self.kind] == checks.ROW_BLOCK else f"{rows}/128"
            if self._is_joined(given):
                dims, replicated = (rows, "h"), (columns, "h", "g")
            results = (results, (scale_rows, f"{columns}/128"))
        elif self._transposed == "transposed":
            results = (("r", "t"), ("r", "t/128"))
        else:
            results, replicated = (("r", "w"), ("r", "w/128")), ("t", "g", "w")
        if self._has_rows:
            results += (("t", "r"), ("t", "r/128"))
        can_cut = dims
        if self._has_rows or given.scales is not None:
            can_cut = ("r",)
        elif self._is_joined(given):
            can_cut = ()
        columns = given.column_factors
        shares_columns = columns is None or columns.ndim == 1
        return Layout(
            operands=(
                (*batch, *dims),
                (*batch, "t", "r/128"),
                (*batch, "g"),
                (*batch, *dims),
                (*batch, dims[0]),
                (*(() if shares_columns else batch), dims[1]),
            ),
            results=tuple((*batch, *dims) for dims in results),
            names=(self.name, "x scales", "group_sizes", "up", "row factors", "weight"),
            replicated=replicated,
            can_cut=can_cut,
        ).of_present(operands)

    def _is_joined(self, given: Operands) -> bool:
        """Says whether both factors of an activation are one array."""
        return self.kind in xla_activation.GATED and given.up is None

    def placed(self, axes):
        if self._transposed is not None or not axes.get(self.axes[0]):
            return self
        return dataclasses.replace(self, row_axes=axes[self.axes[0]])

    def _own_sizes(self, given: Operands) -> Operands:
        """Returns the operands with sizes that say what is valid of one device's rows."""
        if given.group_sizes is None or not self.row_axes:
            return given
        num_rows = given.x.shape[-2]
        count = xla_grouped.num_valid(given.group_sizes, num_rows * lax.axis_size(self.row_axes))
        own = jnp.clip(count - lax.axis_index(self.row_axes) * num_rows, 0, num_rows)
        return given._replace(group_sizes=own[..., None])

    def local(self, *operands):
        plain = dataclasses.replace(self, row_axes=())
        return super(Quantizer, plain).local(*self._own_sizes(Operands(*operands)))

    def result_types(self, *operands) -> tuple:
        given = Operands(*operands)
        *batch, rows, columns = given.x.shape
        block_rows = BLOCK if self.kind == "blocks" else 1
        if self._is_joined(given):
            columns //= 2
        if self._transposed is not None:
            rows, columns = columns, rows
        if self._transposed == "k_grouped":
            num_groups = cast(jax.Array, given.group_sizes).shape[-1]
            columns = BLOCK * xla_quantize.aligned_blocks(columns, num_groups)
        scales = (*batch, -(-rows // block_rows), -(-columns // BLOCK))
        types = like((*batch, rows, columns), self.dtype), like(scales, jnp.float32)
        if self._has_rows:
            types += dataclasses.replace(self, kind="rows").result_types(given.x)
        return types

    @property
    def is_left_to_xla(self) -> bool:
        return self.implementation == "xla"

    def batch(self, apply, axis_size, in_batched, operands):
        *others, columns = operands
        *others_batched, has_columns = in_batched
        if columns is None or (columns.ndim == 1 and not has_columns):
            return apply(self, batch_all(axis_size, in_batched, operands, shared=(5,)))
        # One for each matrix there is then.
        lead = others[0].shape[int(others_batched[0]) : -2]
        if has_columns and columns.ndim == 2:
            columns = columns.reshape(axis_size, *(1,) * len(lead), columns.shape[-1])
        columns = jnp.broadcast_to(columns, (axis_size, *lead, columns.shape[-1]))
        return apply(self, (*batch_all(axis_size, others_batched, tuple(others)), columns))

    def jvp(self, primals, tangents):
        # Derivatives are left to XLA. Scales have none, and may be of blocks on several devices.
        results = apply(self, primals)
        computed = self.xla
        if self._transposed != "k_grouped" and Operands(*primals).scales is None:
            computed = functools.partial(self._by_scales, results[1::2])
        return results, jax.jvp(computed, primals, tangents)[1]

    def _by_scales(self, scales: tuple[jax.Array, ...], *operands) -> tuple[jax.Array, ...]:
        """Returns the results from plain JAX, given the scales of each."""
        given = Operands(*operands)
        if self._transposed is None:
            arrays, block = [self._rows(given)], _BLOCKS[self.kind]
        else:
            arrays, block = [jnp.swapaxes(given.x, -1, -2)], checks.ROW_BLOCK
            if self._has_rows:
                arrays.append(xla_quantize.valid_rows(given.x, given.group_sizes))
        last = (self.dtype, self.scale_format)
        results = []
        for x, given in zip(arrays, scales, strict=True):
            own = xla_gemm.per_element(given, block, x.shape)
            results += [xla_quantize.block_values(x, own, (1, 1), *last), given]
        return tuple(results)

    def xla(self, *operands) -> tuple[jax.Array, ...]:
        given, last = Operands(*operands), (self.dtype, self.scale_format)
        if self._transposed is None:
            return xla_quantize.quantize(self._rows(given), _BLOCKS[self.kind], *last)
        leaves = (given.x,) if given.scales is None else (given.x, given.scales)
        results = xla_quantize.quantize_transposed(leaves, given.group_sizes, *last)
        if self._has_rows:
            rows = xla_quantize.valid_rows(given.x, given.group_sizes)
            results += xla_quantize.quantize(rows, checks.ROW_BLOCK, *last)
        return results

    def _rows(self, given: Operands) -> jax.Array:
        """Returns what is quantized along rows."""
        x = given.x
        if given.row_factors is not None and given.column_factors is not None:
            x = xla_activation.normalize(x, given.row_factors, given.column_factors)
        elif self.kind in xla_activation.KINDS:
            x = xla_activation.activate(self.kind, x, given.up)
        return xla_quantize.valid_rows(x, given.group_sizes)

    def local_of_cut(self, cut, *operands) -> tuple[jax.Array, ...]:
        """Shares the largest magnitude of a block among its devices; in plain JAX."""
        given = self._own_sizes(Operands(*operands))
        if given.scales is not None:
            return super().local_of_cut(cut, *operands)
        if self._has_rows:
            # Only blocks along rows are cut.
            transposed = dataclasses.replace(self, kind=_WITH_ROWS[self.kind])
            rows = dataclasses.replace(self, kind="rows", axes=("t", "r"))
            x = xla_quantize.valid_rows(given.x, given.group_sizes)
            return *transposed.local(*given), *rows.local_of_cut(cut, x)
        is_transposed = self.kind == "transposed"
        x = given.x if is_transposed else self._rows(given)
        dims = ("t", "r") if is_transposed else self.axes
        mesh_axes = tuple(cut.get(axis, ()) for axis in dims)
        block = (BLOCK, 1) if is_transposed else _BLOCKS[self.kind]
        leaves = xla_quantize.quantize_part(x, block, self.dtype, self.scale_format, mesh_axes)
        values, scales = (jnp.swapaxes(x, -1, -2) if is_transposed else x for x in leaves)
        return values, scales

    def kernel(self, *operands, backend: str) -> tuple[jax.Array, ...]:
        """Calls the kernel with batch dimensions merged to one, or into the rows."""
        given = Operands(*operands)
        is_rows = self._transposed is None and _BLOCKS[self.kind] == checks.ROW_BLOCK
        columns = given.column_factors
        are_alike = given.group_sizes is None and (columns is None or columns.ndim == 1)
        batch = 1 if is_rows and are_alike else math.prod(given.x.shape[:-2])
        if columns is not None:
            k = columns.shape[-1]
            columns = jnp.broadcast_to(columns.reshape(-1, k), (batch, k))

        def matrices(y: Any) -> Any:
            return None if y is None else y.reshape(batch, -1, y.shape[-1])

        def vectors(y: Any) -> Any:
            return None if y is None else y.reshape(batch, -1)

        types = self.result_types(*operands)
        # Scales along rows, and rows beside a transposed kind, are those of one matrix.
        counts = (batch, 1 if is_rows else batch, 1, 1)[: len(types)]
        merged_types = [
            t.update(shape=(count, math.prod(t.shape[:-1]) // count, t.shape[-1]))
            for t, count in zip(types, counts, strict=True)
        ]
        results = calls.quantize(
            self.kind,
            matrices(given.x),
            merged_types,
            scales=matrices(given.scales),
            up=matrices(given.up),
            group_sizes=vectors(given.group_sizes),
            row_factors=vectors(given.row_factors),
            column_factors=columns,
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
        given, batched = Operands(*operands), Operands(*in_batched)
        others = any(batched._replace(group_sizes=None))
        if self._transposed or others or given.group_sizes is None or not batched.group_sizes:
            return None
        # Of groups of each example: the most rows that one of them has.
        counts = xla_grouped.num_valid(given.group_sizes, given.x.shape[-2])
        return given._replace(group_sizes=jnp.max(counts, 0, initial=0)[..., None])
