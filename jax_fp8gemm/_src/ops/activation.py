# SPDX-License-Identifier: Apache-2.0
"""Activations that are computed while they are quantized: swiglu, geglu, gelu."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.export
import numpy as np

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.xla import activation as xla_activation


@functools.partial(jax.tree_util.register_dataclass, data_fields=("x", "up"), meta_fields=("kind",))
@dataclasses.dataclass(frozen=True)
class Activation:
    """An array that is an activation of others, not computed yet.

    Attributes:
        x: What the activation is of; `up` behind it along the last dimension where that is None
            and the activation is gated.
        up: What the activation is multiplied by, or None.
        kind: "swiglu", "geglu" or "gelu".
    """

    x: jax.Array
    up: jax.Array | None
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        *lead, columns = self.x.shape
        is_joined = self.up is None and self.kind in xla_activation.GATED
        return (*lead, columns // 2 if is_joined else columns)

    @property
    def ndim(self) -> int:
        """Number of dimensions of the result."""
        return self.x.ndim

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the result."""
        return self.x.dtype

    def compute(self) -> jax.Array:
        """Returns the activation from plain JAX, rounded to its dtype."""
        return xla_activation.activate(self.kind, self.x, self.up)


jax.export.register_pytree_node_serialization(
    Activation,
    serialized_name="jax_fp8gemm.Activation",
    serialize_auxdata=lambda static: json.dumps(static).encode(),
    deserialize_auxdata=lambda data: tuple(json.loads(bytes(data))),
)


def swiglu(gate: jax.Array, up: jax.Array | None = None) -> Activation:
    """Returns `silu(gate) * up`, to be computed by the kernel that quantizes it.

    `quantize`, `dot` and `ragged_dot` take the result for `x`: neither it nor its factors are
    written again in floating point. It is computed in float32 and rounded to the dtype of `gate`,
    so that `quantize(swiglu(gate, up))` is `quantize(jax.nn.silu(gate) * up)` but where that
    product is next to a tie. The implementations may differ there: before the rounding each is
    within `2**-20 + 2**-21 * abs(gate)` of the exact result, relative to it. `dot` and `ragged_dot`
    have the gradients of both factors, in plain JAX.

    Args:
        gate: `(..., K)`, `bfloat16`, `float16` or `float32`; or `(..., 2 * K)` with `up` behind the
            gate, as a product with both weights gives it.
        up: As `gate`, or None.

    Returns:
        A pytree in place of an array of shape `(..., K)`; `compute()` gives the array itself.

    Raises:
        TypeError: An argument has an unsupported type or dtype.
        ValueError: `up` has another shape than `gate`, or is None and the last dimension is odd.

    Transformations:
        A pytree: it passes through every transformation of JAX. Sharding: `gate` and `up` are
        sharded alike and stay so. One array of both must not be sharded along its last dimension:
        an automatic mesh gathers it, an explicit one raises ValueError.

    Example:
        >>> y = dot(swiglu(activations, activations), weight.T)        # (M, N)
    """
    return _gated("swiglu", gate, up)


def geglu(gate: jax.Array, up: jax.Array | None = None) -> Activation:
    """Returns `gelu(gate) * up`, to be computed by the kernel that quantizes it.

    As `swiglu`, with `gelu` in its form with tanh, as `jax.nn.gelu` has it. Before the rounding to
    the dtype of `gate` it is within `2**-20 + 2**-20 * e` of the exact result, relative to it, with
    `e = abs(1.6 * gate + 0.0714 * gate**3)`.

    Args:
        gate: As for `swiglu`.
        up: As for `swiglu`.

    Returns:
        As `swiglu`.

    Raises:
        TypeError: As `swiglu`.
        ValueError: As `swiglu`.

    Transformations:
        As `swiglu`.

    Example:
        >>> y = dot(geglu(activations, activations), weight.T)         # (M, N)
    """
    return _gated("geglu", gate, up)


def gelu(x: jax.Array) -> Activation:
    """Returns `gelu(x)`, in its form with tanh, to be computed by the kernel that quantizes it.

    Args:
        x: `(..., K)`, `bfloat16`, `float16` or `float32`.

    Returns:
        As `swiglu`, within the bound of `geglu`.

    Raises:
        TypeError: `x` has an unsupported type or dtype.
        ValueError: `x` has no dimension.

    Transformations:
        As `swiglu`.

    Example:
        >>> y = dot(gelu(activations), weight.T)                       # (M, N)
    """
    x = checks.floating("gelu", "x", x)
    if not x.shape:
        raise ValueError("gelu: x must have shape (..., K), got ().")
    return Activation(x, None, "gelu")


def _gated(kind: str, gate: Any, up: Any) -> Activation:
    gate = checks.floating(kind, "gate", gate)
    if not gate.shape:
        raise ValueError(f"{kind}: gate must have shape (..., K), got ().")
    if up is not None:
        up = checks.floating(kind, "up", up)
        if (up.shape, up.dtype) != (gate.shape, gate.dtype):
            raise ValueError(
                f"{kind}: up must have the shape and dtype of gate = {tuple(gate.shape)}"
                f" {gate.dtype}, got {tuple(up.shape)} {up.dtype}."
            )
    elif gate.shape[-1] % 2:
        raise ValueError(
            f"{kind}: gate must have shape (..., 2 * K) where up is None, got {tuple(gate.shape)}."
        )
    return Activation(gate, up, kind)


def floating_or_activation(op_name: str, name: str, value: Any) -> Any:
    """Returns an array in floating point, or an activation of such."""
    return value if isinstance(value, Activation) else checks.floating(op_name, name, value)


def parts(x: jax.Array | Activation) -> tuple[jax.Array, jax.Array | None, str | None]:
    """Returns x and what it is multiplied by, and the kind of activation, or None for none."""
    return (x.x, x.up, x.kind) if isinstance(x, Activation) else (x, None, None)


def gradients_of(x: jax.Array | Activation | None, dx: jax.Array) -> Any:
    """Returns what a gradient is by the factors of an activation; itself where there is none."""
    if not isinstance(x, Activation):
        return dx
    _, pullback = jax.vjp(Activation.compute, x)
    return pullback(dx)[0]
