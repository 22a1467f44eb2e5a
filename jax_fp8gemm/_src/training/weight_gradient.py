# SPDX-License-Identifier: Apache-2.0
"""weight_gradient: the gradient of a weight, or of each group's: activations times gradients.

Both factors of a dense one are scaled anew per 128 tokens on the device that has them, so that
tokens may be sharded anywhere and one sum is all that devices exchange.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled
from jax_fp8gemm._src.ops.k_grouped_gemm import KGrouped
from jax_fp8gemm._src.ops.product import BatchDims, Product
from jax_fp8gemm._src.ops.quantizer import Operands, Quantizer, RuleQuantizer, sum_quantizer
from jax_fp8gemm._src.training.quantized import COTANGENT, Options, quantized_cotangent
from jax_fp8gemm._src.training.recipe import Recipe
from jax_fp8gemm._src.training.residuals import Residual, keep
from jax_fp8gemm._src.transforms.apply import apply, batch_all
from jax_fp8gemm._src.transforms.operation import InRule, Layout, Operation, like
from jax_fp8gemm._src.transforms.partitioner import names
from jax_fp8gemm._src.xla import gemm as xla_gemm
from jax_fp8gemm._src.xla import grouped as xla_grouped


def weight_gradient(
    options: Options,
    x: Residual,
    dy: jax.Array,
    group_sizes: jax.Array | None,
    gradient: jax.Array | None,
    *,
    gives_rows: bool,
) -> tuple[jax.Array, Residual | None]:
    """Returns the gradient of the weight, and dy in FP8, scaled along N.

    Args:
        options: The static part of the call.
        x: The activations.
        dy: The gradient that arrives.
        group_sizes: `(G,)` where each group has a weight; None for one weight.
        gradient: What the gradient of the weight is added to, or None.
        gives_rows: Whether dy in FP8 is asked for; else it may be None.
    """
    recipe = options.recipe
    result_dtype = cast(np.dtype, options.w_dtype) if gradient is None else gradient.dtype
    static = (options.op_name, result_dtype, options.implementation)
    rows, is_rounded_once = None, recipe.rounds_gradients_once
    if is_rounded_once or gives_rows and recipe.weight_gradient == "bfloat16":
        rows = keep(quantized_cotangent(options, dy, group_sizes))
    if group_sizes is None:
        gives_rows = gives_rows and rows is None
        op = _Dense(*static, recipe, is_nk=options.w_is_nk, gives_rows=gives_rows)
        dy_leaves = (rows.bits, rows.scales) if rows and is_rounded_once else (dy, None)
        operands = (x.bits, x.scales, *dy_leaves, gradient)
    elif recipe.weight_gradient == "bfloat16":
        op = _GroupedInBfloat16(*static)
        operands = (x.bits, x.scales, dy, group_sizes, gradient)
    else:
        if rows is None:
            rows, dy_columns = _rows_and_columns(options, dy, group_sizes, gives_rows)
        else:
            dy_columns = _columns(options, rows, group_sizes)
        op = _Grouped(*static)
        operands = (*_columns(options, x, group_sizes), *dy_columns, group_sizes, gradient)
    results = apply(op, operands, out_sharding=options.gradient_spec, allow_reshard=True)
    if isinstance(results, tuple):
        dw, values, scales = results
        return dw, keep(BlockScaled(values, scales, checks.ROW_BLOCK))
    return results, rows


def _columns(options: Options, rows: Residual, group_sizes: jax.Array) -> tuple[jax.Array, ...]:
    """Returns what was scaled along rows scaled along the rows of each group.

    By powers of two: what had such scales is not rounded again but where it becomes subnormal.
    """
    op = Quantizer(options.op_name, "k_grouped", checks.E4M3, "pow2", options.implementation)
    restored = rows.restore()
    return apply(op, Operands(restored.values, restored.scales, group_sizes))


def _rows_and_columns(
    options: Options, dy: jax.Array, group_sizes: jax.Array, gives_rows: bool
) -> tuple[Residual | None, tuple[jax.Array, ...]]:
    """Returns dy in FP8, scaled along N if asked for, and scaled along the rows of each group."""
    op = RuleQuantizer(
        options.op_name,
        "rows_and_k_grouped" if gives_rows else "k_grouped",
        options.recipe.gradient_dtype,
        options.recipe.scale_format or "float32",
        options.implementation,
        COTANGENT,
    )
    *columns, values, scales = apply(op, Operands(dy, group_sizes=group_sizes))
    if not gives_rows:
        return None, (values, scales)
    return keep(BlockScaled(values, scales, checks.ROW_BLOCK)), tuple(columns)


class _AddedOnce(Operation):
    """A weight gradient, whose last operand is the sum that it is added to, or None."""

    def batch(self, apply, axis_size, in_batched, operands):
        if operands[-1] is not None and not in_batched[-1]:
            raise ValueError(
                f"{self.op_name}: gradient of a MasterWeight must be batched by jax.vmap where the"
                " operands are: it is added once for each of the batch. Map over the tokens as a"
                " dimension of the activations, or add gradients outside of jax.vmap."
            )
        return super().batch(apply, axis_size, in_batched, operands)


class _Batched(InRule):
    """An operation of which a batch is the same with one more of `num_batch` dimensions."""

    num_batch: int

    def batch(self, apply, axis_size, in_batched, operands):
        deeper = dataclasses.replace(cast(Any, self), num_batch=self.num_batch + 1)
        return apply(deeper, batch_all(axis_size, in_batched, operands))


@dataclasses.dataclass(frozen=True)
class _Dense(_AddedOnce, _Batched):
    """`(*batch, K, N)`, the sum over tokens of the outer products of x and dy.

    Operands: bits of x `(*batch, *tokens, K)` in e4m3 with block (1, 128), and their scales; dy
    `(*batch, *tokens, N)` and None, or its bits and their scales; and a float32 accumulator like
    the result, or None. Scales of x are powers of two unless the recipe says otherwise: scaling it
    again along tokens is then exact but for values that become subnormal.

    Where dy is quantized here, its values and scales with block (1, 128) may be results too: what
    the gradient of x reads, from the same reading of dy.

    Attributes:
        op_name: As in Operation.
        result_dtype: Dtype of the result.
        implementation: As in Operation.
        recipe: What is multiplied in which format.
        is_nk: Whether the result is `(*batch, N, K)`.
        num_batch: How many of the leading dimensions are `batch`.
        gives_rows: Whether dy in FP8 is a result.
    """

    op_name: str
    result_dtype: np.dtype
    implementation: str | None
    recipe: Recipe
    is_nk: bool = False
    num_batch: int = 0
    gives_rows: bool = False

    @property
    def reduce_dtype(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """As in Operation."""
        return self.recipe.reduce_dtype or self.result_dtype

    def layout(self, *operands) -> Layout:
        batch = names("v", self.num_batch)
        leading = (*batch, *names("t", operands[2].ndim - 1 - self.num_batch))
        result = (*batch, *(("n", "k") if self.is_nk else ("k", "n")))
        dy = (*leading, "n"), (*leading, "n/128")
        return Layout(
            operands=((*leading, "k"), (*leading, "k/128"), *dy, result),
            results=(result, *dy) if self.gives_rows else (result,),
            names=("x", "x scales", "dy", "dy scales", "accumulator"),
            added=(4,),
            can_cut=("k", "n"),
        ).of_present(operands)

    def result_types(self, *operands) -> Any:
        x, _, dy, *_ = operands
        k, n = x.shape[-1], dy.shape[-1]
        shape = (*x.shape[: self.num_batch], *((n, k) if self.is_nk else (k, n)))
        dw = like(shape, self.result_dtype)
        return (dw, *self._quantizer("rows").result_types(*Operands(dy))) if self.gives_rows else dw

    def sum_quantizer(self):
        return sum_quantizer(self)

    def finish(self, total, *operands):
        if operands[4] is not None:
            total = xla_gemm.as_float32(total) + operands[4]
        return total.astype(self.result_dtype)

    def local(self, *operands) -> Any:
        x_bits, x_scales, dy, dy_scales, accumulator = operands
        x = lax.bitcast_convert_type(x_bits, checks.E4M3), x_scales
        if self.recipe.weight_gradient == "bfloat16":
            return self._in_bfloat16(x, dy, accumulator)
        if self.gives_rows:
            *dy_columns, values, scales = self._along_tokens("rows_and_transposed", dy)
            like_dy = (each.reshape(*dy.shape[:-1], each.shape[-1]) for each in (values, scales))
            return self._product(x, dy_columns, accumulator), *like_dy
        leaves = (dy,)
        if dy_scales is not None:
            leaves = lax.bitcast_convert_type(dy, checks.E4M3), dy_scales
        return self._product(x, self._along_tokens("transposed", *leaves), accumulator)

    def local_of_cut(self, cut, *operands) -> Any:
        """Shares the largest magnitude of a block of the rows, if asked for, among its devices."""
        if not (self.gives_rows and "n" in cut):
            return super().local_of_cut(cut, *operands)
        rows = dataclasses.replace(self._quantizer("rows"), axes=("t", "n"))
        alone = dataclasses.replace(self, gives_rows=False)
        rest = {axis: mesh_axes for axis, mesh_axes in cut.items() if axis != "n"}
        dw = alone.local_of_cut(rest, *operands)
        return dw, *rows.local_of_cut({"n": cut["n"]}, *Operands(operands[2]))

    def _product(self, x: tuple, dy_columns: Sequence[jax.Array], accumulator) -> jax.Array:
        """Returns the product with x, whose scales stay powers of two."""
        x_columns = self._along_tokens("transposed", *x, scale_format="pow2")
        pair = (x_columns, dy_columns)
        lhs, rhs = pair[::-1] if self.is_nk else pair
        batch = names("v", self.num_batch)
        product = Product(
            self.op_name,
            checks.ROW_BLOCK,
            self.result_dtype,
            self.implementation,
            batch_dims=BatchDims(batch, batch, batch, batch),
        )
        return product.local(*lhs, *rhs, accumulator)

    def _quantizer(self, kind: str, dtype: Any = None, scale_format: str | None = None):
        """Returns what quantizes dy, or something else."""
        return Quantizer(
            self.op_name,
            kind,
            dtype or self.recipe.gradient_dtype,
            scale_format or self.recipe.scale_format or "float32",
            self.implementation,
        )

    def _along_tokens(
        self, kind: str, *leaves: jax.Array, scale_format: str | None = None
    ) -> tuple[jax.Array, ...]:
        """Returns values and scales of the transpose, scaled along all tokens."""
        # Behind a barrier, or XLA widens them early for all that reads them, and keeps that.
        leaves = tuple(map(self._one_token_dim, lax.optimization_barrier(leaves)))
        dtype = checks.E4M3 if len(leaves) == 2 else None
        quantizer = self._quantizer(kind, dtype, scale_format)
        return quantizer.local(*Operands(*leaves))

    def _one_token_dim(self, x: jax.Array) -> jax.Array:
        count = self.num_batch
        return x.reshape(*x.shape[:count], math.prod(x.shape[count:-1]), x.shape[-1])

    def _in_bfloat16(self, x: tuple, dy: jax.Array, accumulator) -> jax.Array:
        """Returns XLA's product of the activations as they were rounded, and of dy as it came."""
        rounded = xla_gemm.dequantize(x[0], x[1], checks.ROW_BLOCK)
        factors = [self._one_token_dim(t.astype(jnp.bfloat16)) for t in (rounded, dy)]
        lhs, rhs = factors[::-1] if self.is_nk else factors
        out = jnp.einsum("...tm,...tn->...mn", lhs, rhs, preferred_element_type=jnp.float32)
        out = out if accumulator is None else out + accumulator
        return out.astype(self.result_dtype)


@dataclasses.dataclass(frozen=True)
class _Grouped(_AddedOnce, KGrouped):
    """`(G, K, N)`, gradients of the weights of groups, in FP8."""


@dataclasses.dataclass(frozen=True)
class _GroupedInBfloat16(_AddedOnce, _Batched):
    """`(*batch, G, K, N)`, gradients of the weights of groups, in XLA's bfloat16 product.

    Operands: bits of x `(*batch, T, K)` in e4m3 and their scales, block (1, 128); dy
    `(*batch, T, N)`; sizes of the groups `(*batch, G)`; and a float32 accumulator like the result,
    or None.

    Attributes:
        op_name: As in Operation.
        result_dtype: Dtype of the result.
        implementation: As in Operation.
        num_batch: How many of the leading dimensions are `batch`.
    """

    op_name: str
    result_dtype: np.dtype
    implementation: str | None
    num_batch: int = 0

    def layout(self, *operands) -> Layout:
        batch = names("v", self.num_batch)
        each = (("t", "k"), ("t", "k/128"), ("t", "n"), ("g",), ("g", "k", "n"))
        return Layout(
            operands=tuple((*batch, *dims) for dims in each),
            results=((*batch, "g", "k", "n"),),
            names=("lhs", "lhs scales", "dy", "group_sizes", "accumulator"),
            replicated=("t", "g"),
            can_cut=("k",),
        ).of_present(operands)

    def local(self, *operands) -> jax.Array:
        def of_one(bits, *others):
            values = lax.bitcast_convert_type(bits, checks.E4M3)
            return xla_grouped.weight_gradients(values, *others).astype(self.result_dtype)

        for _ in range(self.num_batch):
            of_one = jax.vmap(of_one)
        return of_one(*operands)
