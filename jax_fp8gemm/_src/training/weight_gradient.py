# SPDX-License-Identifier: Apache-2.0
"""WeightGradient: the gradient of a dense weight, activations times gradients over all tokens.

Both operands are scaled anew per 128 tokens on the device that has them, so that tokens may be
sharded anywhere and one sum is all that devices exchange.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.ops.product import BatchDims, Product
from jax_fp8gemm._src.ops.quantizer import Quantizer
from jax_fp8gemm._src.training.recipe import Recipe
from jax_fp8gemm._src.transforms.apply import batch_all
from jax_fp8gemm._src.transforms.operation import Layout, Operation
from jax_fp8gemm._src.transforms.partitioner import names
from jax_fp8gemm._src.xla import gemm as xla_gemm

_E4M3 = jnp.dtype(jnp.float8_e4m3fn)


def refuse_shared_sum(op_name: str, accumulator: jax.Array | None, is_batched: bool) -> None:
    """Refuses a batch of gradients that would each add the same sum so far."""
    if accumulator is not None and not is_batched:
        raise ValueError(
            f"{op_name}: gradient of a MasterWeight must be batched by jax.vmap where the operands"
            " are: it is added once for each of the batch. Map over the tokens as a dimension of"
            " the activations, or add gradients outside of jax.vmap."
        )


@dataclasses.dataclass(frozen=True)
class WeightGradient(Operation):
    """`(*batch, K, N)`, the sum over tokens of the outer products of x and dy.

    Operands: bits of x `(*batch, *tokens, K)` in e4m3 with block (1, 128), and their scales, where
    a recipe says nothing else powers of two: scaling along tokens then rounds nothing again but
    what becomes subnormal; dy `(*batch, *tokens, N)` and None, or its bits and their scales; and a
    float32 accumulator like the result, or None.

    Attributes:
        op_name: As in Operation.
        result_dtype: Dtype of the result.
        implementation: As in Operation.
        recipe: What is multiplied in which format.
        is_nk: Whether the result is `(*batch, N, K)`.
        num_batch: How many of the leading dimensions are `batch`.
    """

    op_name: str
    result_dtype: np.dtype
    implementation: str | None
    recipe: Recipe
    is_nk: bool = False
    num_batch: int = 0

    @property
    def reduce_dtype(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """As in Operation."""
        return self.recipe.reduce_dtype or self.result_dtype

    def layout(self, *operands) -> Layout:
        batch = names("v", self.num_batch)
        leading = (*batch, *names("t", operands[2].ndim - 1 - self.num_batch))
        result = (*batch, *(("n", "k") if self.is_nk else ("k", "n")))
        return Layout(
            operands=(
                (*leading, "k"),
                (*leading, "k/128"),
                (*leading, "n"),
                (*leading, "n/128"),
                result,
            ),
            results=(result,),
            names=("x", "x scales", "dy", "dy scales", "accumulator"),
            added=(4,),
        ).of_present(operands)

    def batch(self, apply, axis_size, in_batched, operands):
        refuse_shared_sum(self.op_name, operands[4], in_batched[4])
        deeper = dataclasses.replace(self, num_batch=self.num_batch + 1)
        return apply(deeper, batch_all(axis_size, in_batched, operands))

    def finish(self, total, *operands):
        if operands[4] is not None:
            total = xla_gemm.as_float32(total) + operands[4]
        return total.astype(self.result_dtype)

    def local(self, *operands) -> jax.Array:
        x_bits, x_scales, dy, dy_scales, accumulator = operands
        x = lax.bitcast_convert_type(x_bits, _E4M3), x_scales
        if self.recipe.weight_gradient == "bfloat16":
            return self._in_bfloat16(x, dy, accumulator)
        dy = (dy,) if dy_scales is None else (lax.bitcast_convert_type(dy, _E4M3), dy_scales)
        dy_format = self.recipe.scale_format or "float32"
        columns = (
            self._along_tokens(x, _E4M3, "pow2"),
            self._along_tokens(dy, self.recipe.gradient_dtype, dy_format),
        )
        lhs, rhs = columns[::-1] if self.is_nk else columns
        batch = names("v", self.num_batch)
        product = Product(
            self.op_name,
            checks.ROW_BLOCK,
            self.result_dtype,
            self.implementation,
            batch_dims=BatchDims(batch, batch, batch, batch),
        )
        return product.local(*lhs, *rhs, accumulator)

    def _along_tokens(self, leaves: tuple, dtype: np.dtype, scale_format: str) -> tuple:
        """Returns values and scales of the transpose, scaled along all tokens."""
        # Behind a barrier, or XLA widens them early for all that reads them, and keeps that.
        leaves = tuple(map(self._one_token_dim, lax.optimization_barrier(leaves)))
        quantizer = Quantizer(self.op_name, "transposed", dtype, scale_format, self.implementation)
        return quantizer.local(*leaves, *(None,) * (3 - len(leaves)))

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
