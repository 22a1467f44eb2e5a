# SPDX-License-Identifier: Apache-2.0
"""Quantizer: the operation behind quantize, quantize_transposed and quantize_k_grouped."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jax_fp8gemm._src.native import calls
from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.transforms.apply import apply, batch_all
from jax_fp8gemm._src.transforms.operation import InRule, Layout, Operation, like
from jax_fp8gemm._src.transforms.partitioner import names
from jax_fp8gemm._src.xla import quantize as xla_quantize

SCALE_FORMATS = ("float32", "pow2")
_BLOCK = 128
# Kind of quantizer by block.
KINDS = {checks.ROW_BLOCK: "rows", checks.SQUARE_BLOCK: "blocks"}
_BLOCKS = {kind: block for block, kind in KINDS.items()}
# Kinds of two, whose first is transposed and whose second is "rows".
_WITH_ROWS = {"rows_and_transposed": "transposed", "rows_and_k_grouped": "k_grouped"}


@dataclasses.dataclass(frozen=True)
class Quantizer(Operation):
    """Values and scales of an array.

    Operands: x `(..., R, K)` in floating point, None, and for groups the sizes `(..., G)`; or for
    transposed kinds values and scales of x with block (1, 128).

    Attributes:
        op_name: As in Operation.
        kind: "rows", "blocks", "transposed" or "k_grouped"; or "rows_and_transposed" or
            "rows_and_k_grouped", the results of both from one reading of x, those of the rows last.
            Rows in no group are then zeros.
        dtype: Dtype of the values.
        scale_format: One of SCALE_FORMATS.
        implementation: As in Operation.
        name: What x is called in messages.
        axes: What its last two dimensions are called.
        shares_blocks: Whether devices may have parts of a block.
    """

    op_name: str
    kind: str
    dtype: np.dtype
    scale_format: str
    implementation: str | None
    name: str = "x"
    axes: tuple[str, str] = ("r", "k")
    shares_blocks: bool = True

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
        batch = names("b", operands[0].ndim - 2)
        dims, replicated = ("t", "r"), ()
        if self._transposed is None:
            dims = rows, columns = self.axes
            scale_rows = rows if self.kind == "rows" else f"{rows}/128"
            results = (dims, (scale_rows, f"{columns}/128"))
        elif self._transposed == "transposed":
            results = (("r", "t"), ("r", "t/128"))
        else:
            results, replicated = (("r", "w"), ("r", "w/128")), ("t", "g", "w")
        if self._has_rows:
            results += (("t", "r"), ("t", "r/128"))
        return Layout(
            operands=((*batch, *dims), (*batch, "t", "r/128"), (*batch, "g")),
            results=tuple((*batch, *dims) for dims in results),
            names=(self.name, "x scales", "group_sizes"),
            replicated=replicated,
            can_cut=self._can_cut(dims, operands),
        ).of_present(operands)

    def _can_cut(self, dims: tuple[str, str], operands: tuple) -> tuple[str, ...]:
        """Returns the axes along which devices may have parts of a block."""
        if not self.shares_blocks:
            return ()
        if self._has_rows:
            return ("r",)
        return dims if self._reads_x(operands) else ()

    @staticmethod
    def _reads_x(operands: tuple) -> bool:
        """Whether a block is one of x: not of values that have scales, nor of a group."""
        return operands[1] is None and operands[2] is None

    def result_types(self, *operands) -> tuple:
        x, _, group_sizes = operands
        *batch, rows, columns = x.shape
        block_rows = _BLOCK if self.kind == "blocks" else 1
        if self._transposed is not None:
            rows, columns = columns, rows
        if group_sizes is not None:
            columns = _BLOCK * xla_quantize.aligned_blocks(columns, group_sizes.shape[-1])
        scales = (*batch, -(-rows // block_rows), -(-columns // _BLOCK))
        types = like((*batch, rows, columns), self.dtype), like(scales, jnp.float32)
        return types + self._single("rows").result_types(x, None, None) if self._has_rows else types

    @property
    def is_left_to_xla(self) -> bool:
        return self.implementation == "xla"

    def batch(self, apply, axis_size, in_batched, operands):
        return apply(self, batch_all(axis_size, in_batched, operands))

    def jvp(self, function, primals, tangents):
        # Derivatives are left to XLA, which in an explicit mesh needs whole blocks.
        results = apply(dataclasses.replace(self, shares_blocks=False), primals)
        return results, jax.jvp(self.xla, primals, tangents)[1]

    def xla(self, *operands) -> tuple[jax.Array, ...]:
        x, x_scales, group_sizes = operands
        last = (self.dtype, self.scale_format)
        if self._transposed is None:
            return xla_quantize.quantize(x, _BLOCKS[self.kind], *last)
        leaves = (x,) if x_scales is None else (x, x_scales)
        results = xla_quantize.quantize_transposed(leaves, group_sizes, *last)
        if self._has_rows:
            rows = xla_quantize.valid_rows(x, group_sizes)
            results += xla_quantize.quantize(rows, checks.ROW_BLOCK, *last)
        return results

    def local_of_cut(self, cut, *operands) -> tuple[jax.Array, ...]:
        """Shares the largest magnitude of a block among its devices; in plain JAX."""
        x, _, group_sizes = operands
        if self._has_rows:
            # Only blocks along rows are cut.
            rows = dataclasses.replace(self, kind="rows", axes=("t", "r"))
            return (
                *self._single(_WITH_ROWS[self.kind]).local(*operands),
                *rows.local_of_cut(cut, xla_quantize.valid_rows(x, group_sizes), None, None),
            )
        is_transposed = self.kind == "transposed"
        dims = ("t", "r") if is_transposed else self.axes
        mesh_axes = tuple(cut.get(axis, ()) for axis in dims)
        block = (_BLOCK, 1) if is_transposed else _BLOCKS[self.kind]
        leaves = xla_quantize.quantize_part(x, block, self.dtype, self.scale_format, mesh_axes)
        values, scales = (jnp.swapaxes(x, -1, -2) if is_transposed else x for x in leaves)
        return values, scales

    def kernel(self, *operands, backend: str) -> tuple[jax.Array, ...]:
        """Calls the kernel with batch dimensions merged to one, or into the rows."""
        x, *others = operands
        num_batch = x.ndim - 2
        batch = 1 if self.kind == "rows" else math.prod(x.shape[:num_batch])
        x_scales, group_sizes = (
            None if y is None else y.reshape(batch, *y.shape[num_batch:]) for y in others
        )
        types = self.result_types(*operands)
        # Rows beside a transposed layout are those of one matrix.
        counts = (batch, batch, 1, 1)[: len(types)]
        merged_types = [
            t.update(shape=(count, math.prod(t.shape[:-1]) // count, t.shape[-1]))
            for t, count in zip(types, counts, strict=True)
        ]
        results = calls.quantize(
            self.kind,
            x.reshape(batch, -1, x.shape[-1]),
            x_scales,
            group_sizes,
            merged_types,
            scale_format=self.scale_format,
            backend=backend,
        )
        return tuple(y.reshape(t.shape) for y, t in zip(results, types, strict=True))


@dataclasses.dataclass(frozen=True)
class RuleQuantizer(InRule, Quantizer):
    """A quantizer inside a derivative rule."""
