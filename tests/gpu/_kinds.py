# SPDX-License-Identifier: Apache-2.0
"""Runs a problem of any kind on the GPU or simulated, between neighbours and into old NaN."""

import jax
import jax.numpy as jnp
import numpy as np
from _dense import device_for, poison
from _problems import Problem, arguments, mismatch, product


def operands_of(problem: Problem, implementation: str) -> list[jax.Array | None]:
    """Returns a problem's arguments on the device of an implementation."""
    return jax.device_put(arguments(problem), device_for(implementation))


def run_between_neighbours(
    problem: Problem, implementation: str, *, config: str = "", num_sms: int | None = None
) -> np.ndarray:
    """Returns the result, written into NaN between two arrays that must stay what they are.

    Of three arrays of the result's shape, the middle one in memory is donated. An accumulator
    is not replaced by NaN: the kernel reads it.
    """
    operands, device = operands_of(problem, implementation), device_for(implementation)
    shape, dtype = (problem.d_rows, problem.n), jnp.dtype(problem.dtype)
    arrays = [poison(shape, dtype, device) for _ in range(3)]
    arrays.sort(key=lambda array: array.unsafe_buffer_pointer())
    before, target, after = arrays
    address = target.unsafe_buffer_pointer()
    jitted = jax.jit(
        lambda _, operands: product(
            problem, operands, config=config, num_sms=num_sms, backend=implementation
        ),
        donate_argnums=0,
        keep_unused=True,
    )
    result = jitted(target, operands).block_until_ready()
    same_memory = result.unsafe_buffer_pointer() == address
    assert problem.accumulate or same_memory, "the result did not take the poisoned memory"
    for name, array in (("before", before), ("after", after)):
        written = np.count_nonzero(~np.isnan(np.asarray(array).astype(np.float32)))
        assert not written, f"{written} elements of the array {name} the result were written"
    return np.asarray(result)


def check(problem: Problem, implementation: str, **options) -> np.ndarray:
    """Runs a problem and compares all of the result with float64; returns the result."""
    out = run_between_neighbours(problem, implementation, **options)
    wrong = mismatch(problem, out, implementation=implementation)
    assert not wrong, f"{problem}: {wrong}"
    return out
