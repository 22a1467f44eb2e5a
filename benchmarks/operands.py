# SPDX-License-Identifier: Apache-2.0
"""Operands of a case, made once on the device and shared by all peers; and the float64 result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jax_fp8gemm as fp8
from benchmarks.cases import BenchCase
from jax_fp8gemm._src.tools.tuning import operands as tuning_operands

# Rows whose float64 product is compared with what a peer computes.
_CHECKED_ROWS = 64
_SEED = 0


@functools.partial(jax.jit, static_argnums=(0, 1))
def _quantized(shape: tuple[int, int], block: tuple[int, int], key: jax.Array) -> fp8.BlockScaled:
    return fp8.quantize(jax.random.normal(key, shape, jnp.float32), block)


class Operands:
    """Normally distributed operands; zeros would draw less power and run faster."""

    def __init__(self, case: BenchCase) -> None:
        """Makes both operands, and an accumulator for a weight gradient."""
        self.case = case
        keys = jax.random.split(jax.random.key(_SEED), 3)
        block = (1, 128) if case.kind == "wgrad" else (128, 128)
        self.lhs = _quantized((case.m, case.k), (1, 128), keys[0])
        self.rhs = _quantized((case.n, case.k), block, keys[1])
        # One array, or none for a case without an accumulator.
        self.accumulators: tuple[jax.Array, ...] = ()
        if case.kind == "wgrad":
            self.accumulators = (jax.random.normal(keys[2], (case.m, case.n), jnp.float32),)

    def dequantized(self, dtype) -> tuple[jax.Array, jax.Array]:
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


class GroupedOperands:
    """Operands of a case with groups of equal sizes, as `tune` makes them."""

    def __init__(self, case: BenchCase) -> None:
        """Makes all of them; the accumulator, where there is one, comes last."""
        self.case = case
        self.given = tuning_operands.operands(case.problem)

    @functools.cached_property
    def sizes(self) -> jax.Array:
        """Rows of each group, or its share of K."""
        data, groups = self.given.group_data, self.case.num_groups
        if self.case.kind == "contiguous":
            data = jnp.bincount(data, length=groups)
        return data.astype(jnp.int32)

    def dequantized(self, dtype) -> tuple[jax.Array, jax.Array]:
        """Returns what the operands stand for; weights of groups have an axis for them."""
        case, given = self.case, self.given
        lhs = _spread(given.lhs_values, given.lhs_scales, (1, 128), dtype)
        if case.kind == "k_grouped":
            return lhs, _spread(given.rhs_values, given.rhs_scales, (1, 128), dtype)
        by_group = (
            x.reshape(case.num_groups, -1, x.shape[1]) for x in (given.rhs_values, given.rhs_scales)
        )
        spread = functools.partial(_spread, block=(128, 128), dtype=dtype)
        return lhs, jax.vmap(spread)(*by_group)

    @functools.cached_property
    def checked_rows(self) -> np.ndarray:
        """Indices of the rows that are compared."""
        rows = np.random.default_rng(_SEED).permutation(self.case.problem.d_rows)
        return np.sort(rows[:_CHECKED_ROWS])

    @functools.cached_property
    def reference(self) -> np.ndarray:
        """The checked rows of the product in plain JAX."""
        product = tuning_operands.reference(self.case.problem, self.given)
        return np.asarray(product[self.checked_rows].astype(jnp.float32), np.float64)

    def error_of(self, rows: np.ndarray) -> float:
        """Returns the squared relative distance of computed rows from the reference."""
        return fp8.testing.relative_error(np.asarray(rows, np.float64), self.reference)


@functools.partial(jax.jit, static_argnames=("block", "dtype"))
def _spread(values: jax.Array, scales: jax.Array, block: tuple[int, int], dtype) -> jax.Array:
    return fp8.BlockScaled(values, scales, block).dequantize(dtype)


def operands_for(case: BenchCase) -> Operands | GroupedOperands:
    """Makes the operands of a case."""
    return Operands(case) if case.kind in ("forward", "wgrad") else GroupedOperands(case)
