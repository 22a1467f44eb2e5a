# SPDX-License-Identifier: Apache-2.0
"""What tuning runs: operands of a problem, its product in plain JAX, and a call of one kernel.

Groups have equal sizes, as the heuristics take them to have. Values are normally distributed: zeros
would draw less power and run faster.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout

from jax_fp8gemm._src.native import calls
from jax_fp8gemm._src.native.gemm_problem import Problem
from jax_fp8gemm._src.tables import BLOCK
from jax_fp8gemm._src.xla import gemm as xla_gemm
from jax_fp8gemm._src.xla import grouped as xla_grouped

# Largest squared relative distance from the product in plain JAX.
MAX_ERROR = 1e-4
# What the simulator multiplies in seconds.
MAX_SIMULATED_MACS = 64 << 20
_DENSE_AXES = (("m", "k"), ("n", "k"), ("m", "n"))


class Operands(NamedTuple):
    """Operands of `calls.matmul`, in its order."""

    lhs_values: jax.Array
    lhs_scales: jax.Array
    rhs_values: jax.Array
    rhs_scales: jax.Array
    group_data: jax.Array | None
    accumulator: jax.Array | None


class Call(NamedTuple):
    """A compiled program, as timers want it."""

    start: Callable[[], Any]
    finish: Callable[[Any], Any]


def _shares(total: int, parts: int) -> np.ndarray:
    """Returns sizes that differ by one at most, the larger ones first."""
    return total // parts + (np.arange(parts) < total % parts)


def group_data(problem: Problem) -> np.ndarray | None:
    """Returns sizes or ids of groups that are as equal as their kind lets them be."""
    groups = problem.num_groups
    if problem.kind == "dense":
        return None
    if problem.kind == "masked":
        return np.full(groups, problem.group_rows, np.int32)
    if problem.kind == "ragged":
        return _shares(problem.m, groups).astype(np.int32)
    # The other two begin groups at multiples of 128.
    total = problem.m if problem.kind == "contiguous" else problem.k
    sizes = _shares(-(-total // BLOCK), groups) * BLOCK
    if problem.kind == "contiguous":
        return np.repeat(np.arange(groups, dtype=np.int32), sizes)[:total]
    ends = np.minimum(np.cumsum(sizes), total)
    return np.diff(ends, prepend=0).astype(np.int32)


def operands(problem: Problem) -> Operands:
    """Returns operands on the default device. All groups have the same weights."""
    copies = problem.b_rows // problem.n
    k_blocks = -(-problem.k // BLOCK)
    scale_rows = problem.n if problem.scaling == "1d1d" else -(-problem.n // BLOCK)
    keys = jax.random.split(jax.random.key(0), 5)
    lhs = _values(keys[0], (problem.a_rows, problem.k), problem.a_dtype)
    rhs = _values(keys[1], (problem.n, problem.k), problem.b_dtype)
    rhs_scales = _scales(keys[3], (scale_rows, k_blocks))
    data = group_data(problem)
    shape = (problem.d_rows, problem.n)
    return Operands(
        lhs,
        _scales(keys[2], (problem.a_rows, k_blocks)),
        jnp.tile(rhs, (copies, 1)),
        jnp.tile(rhs_scales, (copies, 1)),
        None if data is None else jnp.asarray(data),
        _values(keys[4], shape, problem.d_dtype) if problem.accumulate else None,
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _values(key: jax.Array, shape: tuple[int, int], dtype: str) -> jax.Array:
    return jax.random.normal(key, shape, jnp.bfloat16).astype(dtype)


@functools.partial(jax.jit, static_argnums=1)
def _scales(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.random.uniform(key, shape, jnp.float32, 0.5, 2.0)


@functools.partial(jax.jit, static_argnums=0)
def reference(problem: Problem, given: Operands) -> jax.Array:
    """Returns the product in plain JAX, `(d_rows, n)`."""
    lhs_values, lhs_scales, rhs_values, rhs_scales, data, accumulator = given
    dtype = jnp.dtype(problem.d_dtype)
    if data is None:  # "dense"
        block = (1, BLOCK) if problem.scaling == "1d1d" else (BLOCK, BLOCK)
        out = xla_gemm.product(*given[:4], rhs_block=block, axes=_DENSE_AXES)
        if accumulator is not None:
            out += accumulator.astype(jnp.float32)
        return out.astype(dtype)
    if problem.kind == "k_grouped":
        shape = (problem.num_groups, problem.m, problem.n)
        added = None if accumulator is None else accumulator.reshape(shape)
        out = xla_grouped.k_grouped(*given[:4], data, added, preferred_element_type=dtype)
        return out.reshape(-1, problem.n)
    if problem.kind == "masked":
        segments = xla_grouped.masked_segments(data, problem.m)
    elif problem.kind == "ragged":
        segments = xla_grouped.ragged_segments(data, problem.m)
    else:
        segments = xla_grouped.contiguous_segments(data, problem.num_groups, BLOCK)
    rhs = [x.reshape(problem.num_groups, -1, x.shape[1]) for x in (rhs_values, rhs_scales)]
    return xla_grouped.grouped_rows(lhs_values, lhs_scales, *rhs, segments=segments, dtype=dtype)


def matmul(problem: Problem, config: str, backend: str) -> Callable[..., jax.Array]:
    """Returns a function of the operands that are not None: the product, from one kernel."""

    def function(*present: jax.Array) -> jax.Array:
        remaining = list(present)
        (*values,) = (remaining.pop(0) for _ in range(4))
        data = None if problem.kind == "dense" else remaining.pop(0)
        accumulator = remaining.pop(0) if problem.accumulate else None
        options = {"num_sms": problem.num_sms, "backend": backend, "config": config}
        return calls.matmul(problem, values, data, accumulator, **options)

    return function


def prepare(problem: Problem, given: Operands, config: str, backend: str) -> Call:
    """Returns a call of one kernel.

    Operands lie as the compiler wants them, as they do inside a model, so that no call begins with
    a transpose. An accumulator is donated and becomes the result of the call before.
    """
    arrays = [x for x in given if x is not None]
    layouts: list[Any] = [Format(Layout.AUTO)] * len(arrays)
    donated = ()
    if problem.accumulate:
        layouts[-1] = None  # as the result has it, whose memory it is
        donated = (len(arrays) - 1,)
    function = matmul(problem, config, backend)
    jitted = jax.jit(function, in_shardings=tuple(layouts), donate_argnums=donated)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    compiled = jitted.lower(*shapes).compile()
    state = list(jax.device_put(arrays, list(compiled.input_formats[0])))
    if problem.accumulate:
        state[-1] = jnp.copy(state[-1])  # donated, while other kernels need theirs

    def start() -> jax.Array:
        result = compiled(*state)
        if problem.accumulate:
            state[-1] = result
        return result

    return Call(start, jax.block_until_ready)


@functools.partial(jax.jit, static_argnums=0)
def relative_error(problem: Problem, out: jax.Array, expected: jax.Array) -> jax.Array:
    """Returns the squared relative distance of two results; NaN where one holds NaN."""
    if problem.kind == "masked":  # the other rows may hold anything
        row = jnp.arange(out.shape[0]) % problem.m
        counts = (row < problem.group_rows)[:, None]
        out, expected = (jnp.where(counts, x, jnp.zeros_like(x)) for x in (out, expected))
    x, y = out.astype(jnp.float32), expected.astype(jnp.float32)
    return jnp.sum((x - y) ** 2) / (jnp.sum(x * x) + jnp.sum(y * y))


def check_error(error: float) -> None:
    """Raises ArithmeticError if a result is further from its reference than rounding explains."""
    if not error <= MAX_ERROR:  # which NaN is not
        raise ArithmeticError(f"wrong result: relative error {error:.3g}, over {MAX_ERROR}")
