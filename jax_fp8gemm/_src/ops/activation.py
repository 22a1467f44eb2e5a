# SPDX-License-Identifier: Apache-2.0
"""What is computed while it is quantized: swiglu, geglu, gelu, rms_norm; and arrays as they are."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.stand_in import StandIn, exported
from jax_fp8gemm._src.ops.quantizer import Operands
from jax_fp8gemm._src.xla import activation as xla_activation
from jax_fp8gemm._src.xla import gemm as xla_gemm

_MAX_FLOAT32 = float(np.finfo(np.float32).max)


class ActivationOperand(StandIn):
    """Activations as a product that is trained computes with them; a pytree.

    Attributes:
        x: An array of their dtype, sharded as they are.
    """

    _leaf = "x"
    x: jax.Array

    def map_rows(self, f: Callable) -> Any:
        """Returns the same of the rows that `f` makes of arrays of rows."""
        return jax.tree.map(f, self)

    def residual(self) -> Any:
        """Returns what the backward pass keeps beside the bits that both passes read."""
        raise NotImplementedError

    def gradient(self, dx: jax.Array) -> Any:
        """Returns the gradient that a residual has, by that of the activations as an array."""
        raise NotImplementedError


class Computed(ActivationOperand):
    """An array that the kernel which quantizes it along rows computes on the way.

    Attributes:
        x: What it is computed from first.
        kind: Kind of quantizer.
    """

    kind: str

    def operands(self, group_sizes: jax.Array | None = None) -> Operands:
        """Returns what the quantizer takes."""
        return Operands(self.x, group_sizes=group_sizes)

    def compute(self) -> jax.Array:
        """Returns the array from plain JAX, rounded to its dtype."""
        return self.x

    def residual(self) -> "Computed":
        """Returns all that it is computed from."""
        return self

    def gradient(self, dx: jax.Array) -> "Computed":
        """Returns the gradients of all that it is computed from."""
        _, pullback = jax.vjp(type(self).compute, self)
        return pullback(dx)[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plain(Computed):
    """An array as it is."""

    x: jax.Array
    kind = "rows"

    def residual(self) -> "Plain":
        """Returns nothing but the type."""
        nothing: Any = None
        return Plain(nothing)

    def gradient(self, dx: jax.Array) -> "Plain":
        """Returns the gradient itself."""
        return Plain(dx)


@exported
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Activation(Computed):
    """An activation element by element.

    Attributes:
        x: What the activation is of; `up` behind it along the last dimension where that is None
            and the activation is gated.
        up: What the activation is multiplied by, or None.
        kind: "swiglu", "geglu" or "gelu".
    """

    x: jax.Array
    up: jax.Array | None
    kind: str = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        *lead, columns = self.x.shape
        is_joined = self.up is None and self.kind in xla_activation.GATED
        return (*lead, columns // 2 if is_joined else columns)

    def operands(self, group_sizes: jax.Array | None = None) -> Operands:
        """Returns what the quantizer takes."""
        return Operands(self.x, group_sizes=group_sizes, up=self.up)

    def compute(self) -> jax.Array:
        """Returns the activation from plain JAX, rounded to its dtype."""
        return xla_activation.activate(self.kind, self.x, self.up)


@exported
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RMSNorm(Computed):
    """Rows times the reciprocal roots of their mean squares, and columns times a weight.

    Attributes:
        x: `(..., K)`.
        weight: `(K,)`.
        factors: `(...)`, those of the rows, in float32.
    """

    x: jax.Array
    weight: jax.Array
    factors: jax.Array
    kind = xla_activation.NORM

    def operands(self, group_sizes: jax.Array | None = None) -> Operands:
        """Returns what the quantizer takes."""
        factors = {"row_factors": self.factors, "column_factors": self._weight()}
        return Operands(self.x, group_sizes=group_sizes, **factors)

    def compute(self) -> jax.Array:
        """Returns the norm from plain JAX, rounded to its dtype."""
        return xla_activation.normalize(self.x, self.factors, self._weight())

    def map_rows(self, f: Callable) -> "RMSNorm":
        """Returns the norm of the rows that `f` makes of an array of rows."""
        return RMSNorm(f(self.x), self.weight, f(self.factors))

    def _weight(self) -> jax.Array:
        return xla_gemm.as_float32(self.weight)


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
    return Activation(_with_columns("gelu", "x", x), None, "gelu")


def rms_norm(x: jax.Array, weight: jax.Array, epsilon: Any = 1e-6) -> RMSNorm:
    """Returns the RMS norm of the rows of x, to be multiplied out by the kernel that quantizes it.

    With one rounding, to the dtype of `x`, behind operations in float32::

        x[m, k] * rsqrt(mean(x[m, :]**2) + epsilon) * weight[k]

    `quantize`, `dot` and `ragged_dot` take the result for `x`: it is not written in floating point.
    The roots are plain JAX, a float32 per row: where XLA computes `x` in the same program, as the
    sum of a residual, they cost no reading of it. Every `implementation` gives the same bits. `dot`
    and `ragged_dot` have the gradients of `x` and of `weight`, in plain JAX.

    Args:
        x: `(..., K)`, `bfloat16`, `float16` or `float32`.
        weight: `(K,)` of one of these dtypes; `1 + weight` for models that store it so.
        epsilon: Number, of Python or NumPy, that is added to the mean squares; not negative.

    Returns:
        As `swiglu`.

    Raises:
        TypeError: An argument has an unsupported type or dtype.
        ValueError: `x` has no dimension, `weight` another shape, or `epsilon` is negative, NaN or
            no finite float32.

    Transformations:
        A pytree of `x`, `weight` and the roots. `vmap` and `scan` over its rows need the weight in
        each: map over `x`, and call this inside. What a `vmap` returns may have a weight per row;
        plain JAX multiplies it out then, before the quantizer. Sharding: `x` may be sharded along
        every dimension, and `weight` is then sharded as its columns are; devices that have parts of
        rows add up their squares. Under `jax.shard_map` the rows are those of each device.

    Example:
        >>> y = dot(rms_norm(activations, jnp.ones(256)), weight.T)    # (M, N)
    """
    op_name = "rms_norm"
    x = _with_columns(op_name, "x", x)
    weight = checks.floating(op_name, "weight", weight)
    checks.has_shape(op_name, "weight", weight, "K,", tuple(x.shape[-1:]))
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float | np.integer | np.floating):
        raise TypeError(f"{op_name}: epsilon must be a number, got {type(epsilon).__name__}.")
    if not 0 <= epsilon <= _MAX_FLOAT32:
        raise ValueError(f"{op_name}: epsilon must be from 0 to {_MAX_FLOAT32:.3g}, got {epsilon}.")
    return RMSNorm(x, weight, _reciprocal_roots(x, float(epsilon)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _roots(x: jax.Array, epsilon: float) -> jax.Array:
    x = xla_gemm.as_float32(x)
    return lax.rsqrt(jnp.mean(x * x, axis=-1) + epsilon)


def _roots_forward(x: jax.Array, epsilon: float):
    roots = _roots(x, epsilon)
    return roots, (x, roots)


def _roots_backward(epsilon: float, residuals, droots: jax.Array):
    x, roots = residuals
    dmean = -0.5 * droots * roots**3
    # A row whose root has no part in the result may hold anything: 0 times NaN must not come in.
    has_part = (droots != 0)[..., None]
    dx = dmean[..., None] * (2 / x.shape[-1]) * xla_gemm.as_float32(x)
    return (jnp.where(has_part, dx, 0).astype(x.dtype),)


_roots.defvjp(_roots_forward, _roots_backward)
# Compiled as one program when called outside of jax.jit, inlined when called inside.
_reciprocal_roots = jax.jit(_roots, static_argnums=1, inline=True)


def _gated(kind: str, gate: Any, up: Any) -> Activation:
    gate = _with_columns(kind, "gate", gate)
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


def _with_columns(op_name: str, name: str, value: Any) -> jax.Array:
    x = checks.floating(op_name, name, value)
    if not x.shape:
        raise ValueError(f"{op_name}: {name} must have shape (..., K), got ().")
    return x


def as_activation(op_name: str, name: str, value: Any) -> Computed:
    """Returns an activation, which an array in floating point is too."""
    if isinstance(value, RMSNorm) and value.weight.shape[:-1] not in ((), value.x.shape[:-2]):
        return Plain(value.compute())  # `jax.vmap` makes weights that the kernel does not take
    if isinstance(value, Computed):
        return value
    return Plain(checks.floating(op_name, name, value))
