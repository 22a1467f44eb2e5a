# SPDX-License-Identifier: Apache-2.0
"""What backward passes keep of float8 operands: their bits.

`jax.checkpoint` sends what its policy saves through `lax.reduce_precision`, which takes a format to
have infinities: float8_e4m3fn has none, and its values above 240 would come out as NaN. Integers
pass unchanged. Forward and backward products take the bits themselves, so that devices exchange
them once for both.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jax_fp8gemm._src.operands.block_scaled import BlockScaled
from jax_fp8gemm._src.xla import gemm as xla_gemm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Residual:
    """A BlockScaled whose values are held as uint8.

    Attributes:
        bits: `(..., R, K)` `uint8`.
        scales: As in BlockScaled.
        dtype: Dtype of the values.
        block: As in BlockScaled.
    """

    bits: jax.Array
    scales: jax.Array
    dtype: np.dtype = dataclasses.field(metadata={"static": True})
    block: tuple[int, int] = dataclasses.field(metadata={"static": True})

    def transpose(self) -> "Residual":
        """Returns the transpose of the last two dimensions; blocks of 128x128 stay blocks."""
        return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, -1, -2), self)

    def restore(self) -> BlockScaled:
        """Returns what was kept."""
        values = lax.bitcast_convert_type(self.bits, self.dtype)
        return BlockScaled.tree_unflatten(self.block, (values, self.scales))


def keep(operand: BlockScaled, name: str | None = None) -> Residual:
    """Returns the operand for the backward pass, under a name for policies of `jax.checkpoint`.

    The forward pass must use it too, or a policy that saves names would not save what it used.
    """
    bits = xla_gemm.bit_cast(operand.values, jnp.uint8)
    kept = Residual(bits, operand.scales, jnp.dtype(operand.dtype), operand.block)
    return kept if name is None else checkpoint_name(kept, name)
