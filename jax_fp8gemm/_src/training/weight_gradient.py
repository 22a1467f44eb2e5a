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
from jax_fp8gemm._src.transforms.apply import batch_all
from jax_fp8gemm._src.transforms.operation import Layout, Operation
from jax_fp8gemm._src.transforms.partitioner import names

_E4M3 = jnp.dtype(jnp.float8_e4m3fn)


@dataclasses.dataclass(frozen=True)
class WeightGradient(Operation):
    """`(*batch, K, N)`, the sum over tokens of the outer products of x and dy.

    Operands: bits of x `(*batch, *tokens, K)` in e4m3 with block (1, 128), and their scales, best
    powers of two: scaling along tokens then rounds nothing again but what becomes subnormal; and dy
    `(*batch, *tokens, N)`.

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
        leading = (*batch, *names("t", operands[2].ndim - 1 - self.num_batch))
        return Layout(
            operands=((*leading, "k"), (*leading, "k/128"), (*leading, "n")),
            results=((*batch, "k", "n"),),
            names=("x", "x scales", "dy"),
        )

    def batch(self, apply, axis_size, in_batched, operands):
        deeper = dataclasses.replace(self, num_batch=self.num_batch + 1)
        return apply(deeper, batch_all(axis_size, in_batched, operands))

    def partial_sum(self) -> "WeightGradient":
        return dataclasses.replace(self, result_dtype=jnp.dtype(jnp.float32))

    def local(self, *operands) -> jax.Array:
        x_bits, x_scales, dy = operands
        batch = names("v", self.num_batch)
        count = self.num_batch

        def along_tokens(leaves, scale_format):
            # Behind a barrier, or XLA widens them early for all that reads them, and keeps that.
            leaves = tuple(
                x.reshape(*x.shape[:count], math.prod(x.shape[count:-1]), x.shape[-1])
                for x in lax.optimization_barrier(leaves)
            )
            quantizer = Quantizer(
                self.op_name, "transposed", _E4M3, scale_format, self.implementation
            )
            return quantizer.local(*leaves, *(None,) * (3 - len(leaves)))

        x = along_tokens((lax.bitcast_convert_type(x_bits, _E4M3), x_scales), "pow2")
        product = Product(
            self.op_name,
            checks.ROW_BLOCK,
            self.result_dtype,
            self.implementation,
            batch_dims=BatchDims(batch, batch, batch),
        )
        return product.local(*x, *along_tokens((dy,), "float32"), None)
