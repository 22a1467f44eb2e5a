# SPDX-License-Identifier: Apache-2.0
"""Runs the dense product for the GPU tests: on memory that holds NaN, and with chosen kernels."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from cases import GemmCase, gemm_operands

import jax_fp8gemm as fp8
from jax_fp8gemm._src.native import calls, extension
from jax_fp8gemm._src.native.gemm_problem import problem_of
from jax_fp8gemm.testing import assert_gemm_close

# Rows of a large result that are compared with float64: each row is independent of the others.
MAX_CHECKED_ROWS = 256


def device_for(implementation: str) -> jax.Device:
    """Returns the first device that an implementation runs on."""
    return jax.devices("cuda" if implementation == "cuda" else "cpu")[0]


def operands_for(case: GemmCase, implementation: str, **options) -> tuple:
    """Returns quantized operands on the device of an implementation."""
    with jax.default_device(device_for(implementation)):
        return jax.device_put(gemm_operands(case, **options), device_for(implementation))


def poison(shape: tuple[int, ...], dtype, device: jax.Device) -> jax.Array:
    """Returns NaN on a device, after leaving NaN in freed memory of the same size.

    The allocators hand out freed memory again, so that a temporary of a program is likely to start
    as NaN too.
    """
    # Made on the device: memory shared with NumPy cannot be donated.
    arrays = [jnp.full(shape, jnp.nan, dtype, device=device) for _ in range(5)]
    for freed in arrays[1:]:
        freed.block_until_ready().delete()
    return arrays[0].block_until_ready()


def run_poisoned(function, lhs, rhs, dtype) -> jax.Array:
    """Returns `function(lhs, rhs)` computed into memory that held NaN.

    The donated argument is used by nothing but the result's memory.
    """
    jitted = jax.jit(lambda _, *operands: function(*operands), donate_argnums=0, keep_unused=True)
    shape = (lhs.shape[0], rhs.shape[0])
    target = poison(shape, dtype, next(iter(lhs.values.devices())))
    address = target.unsafe_buffer_pointer()
    result = jitted(target, lhs, rhs)
    assert result.unsafe_buffer_pointer() == address, "the result did not take the poisoned memory"
    return result


def with_config(config: str, dtype, implementation: str, num_sms: int | None = None):
    """Returns gemm with the kernel that a configuration key names."""

    def call(lhs, rhs, accumulator=None):
        factors = (lhs.values, lhs.scales, rhs.values, rhs.scales)
        problem = problem_of(
            "dense",
            factors,
            rhs_block=rhs.block,
            result_dtype=dtype,
            accumulate=accumulator is not None,
        )
        options = {"num_sms": num_sms, "backend": implementation, "config": config}
        return calls.matmul(problem, factors, None, accumulator, **options)

    return call


def dense_configs() -> dict[str, dict]:
    """Returns every dense configuration of the heuristics, by key; none without the extension."""
    if importlib.util.find_spec("jax_fp8gemm._core") is None:
        return {}
    core = extension.core()
    configs = {key: core.describe_config(key) for key in core.candidate_configs()}
    return {key: config for key, config in configs.items() if config["kind"] == "dense"}


def gemm_with(implementation: str, **options):
    """Returns the public gemm with options."""
    return functools.partial(fp8.gemm, implementation=implementation, **options)


def _rows(x: fp8.BlockScaled, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(x.values)[rows], np.asarray(x.scales)[rows]


def assert_close(out, lhs, rhs, accumulator=None, *, implementation: str) -> None:
    """Compares with float64: all of a small result, some rows of a large one."""
    assert bool(jnp.isfinite(out.astype(jnp.float32)).all()), "not finite everywhere"
    rows = np.arange(out.shape[0])
    if rows.size > MAX_CHECKED_ROWS:
        chosen = np.random.default_rng(0).choice(rows, MAX_CHECKED_ROWS - 2, replace=False)
        rows = np.unique([0, rows[-1], *chosen])
    values, scales = _rows(lhs, rows)
    assert_gemm_close(
        np.asarray(out)[rows],
        fp8.BlockScaled(values, scales, (1, 128)),
        rhs,
        None if accumulator is None else np.asarray(accumulator)[rows],
        implementation=implementation,
    )


def assert_same_bits(x, y) -> None:
    """Compares two arrays of the same dtype bit for bit, NaN and signed zero included."""
    x, y = np.asarray(x), np.asarray(y)
    assert x.dtype == y.dtype and x.shape == y.shape
    bits = np.dtype(f"u{x.dtype.itemsize}")
    different = np.argwhere(x.view(bits) != y.view(bits))
    assert not different.size, f"{len(different)} of {x.size} differ, the first at {different[0]}"
