# SPDX-License-Identifier: Apache-2.0
"""Operands of a case, made once on the device and shared by all peers; and the float64 result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jax_fp8gemm as fp8
from benchmarks.cases import BenchCase

# Rows whose float64 product is compared with what a peer computes.
_CHECKED_ROWS = 64
_SEED = 0


@functools.partial(jax.jit, static_argnums=(0, 1))
def _quantised(shape: tuple[int, int], block: tuple[int, int], key: jax.Array) -> fp8.BlockScaled:
    return fp8.quantize(jax.random.normal(key, shape, jnp.float32), block)


class Operands:
    """Normally distributed operands; zeros would draw less power and run faster."""

    def __init__(self, case: BenchCase) -> None:
        """Makes both operands, and an accumulator for a weight gradient."""
        self.case = case
        keys = jax.random.split(jax.random.key(_SEED), 3)
        block = (1, 128) if case.kind == "wgrad" else (128, 128)
        self.lhs = _quantised((case.m, case.k), (1, 128), keys[0])
        self.rhs = _quantised((case.n, case.k), block, keys[1])
        # One array, or none for a case without an accumulator.
        self.accumulators: tuple[jax.Array, ...] = ()
        if case.kind == "wgrad":
            self.accumulators = (jax.random.normal(keys[2], (case.m, case.n), jnp.float32),)

    def dequantised(self, dtype) -> tuple[jax.Array, jax.Array]:
        """Returns what the operands stand for, in a wider type."""
        return self.lhs.dequantize(dtype), self.rhs.dequantize(dtype)

    @functools.cached_property
    def checked_rows(self) -> np.ndarray:
        """Indices of the rows that are compared."""
        rows = np.random.default_rng(_SEED).permutation(self.case.m)[:_CHECKED_ROWS]
        return np.sort(rows)

    @functools.cached_property
    def reference(self) -> np.ndarray:
        """The checked rows of the float64 product of what the operands stand for."""
        lhs = np.asarray(self.lhs.dequantize(jnp.float32)[self.checked_rows], np.float64)
        # In pieces: a whole large weight in float64 would take gigabytes.
        step = 4096
        parts = []
        values, scales = np.asarray(self.rhs.values), np.asarray(self.rhs.scales)
        for start in range(0, self.case.n, step):
            rows = np.arange(start, min(start + step, self.case.n))
            scale = scales[rows // self.rhs.block[0]].repeat(128, axis=1)[:, : self.case.k]
            parts.append(lhs @ (values[rows].astype(np.float32) * scale).astype(np.float64).T)
        product = np.concatenate(parts, axis=1)
        for accumulator in self.accumulators:
            product += np.asarray(accumulator[self.checked_rows], np.float64)
        return product

    def error_of(self, rows: np.ndarray) -> float:
        """Returns the squared relative distance of computed rows from the reference."""
        return fp8.testing.relative_error(np.asarray(rows, np.float64), self.reference)
