# SPDX-License-Identifier: Apache-2.0
"""Quantizers and products of any shape and size of numbers against float64 (hypothesis)."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_fp8gemm as fp8
from jax_fp8gemm.testing import assert_gemm_close, assert_grouped_gemm_close

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("extension")]
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)
EXTENTS = st.integers(1, 140)
DEPTHS = st.integers(1, 300)
SEEDS = st.integers(0, 2**32 - 1)
EXPONENTS = st.integers(-30, 30)
MAX_E4M3 = 448.0


def normal(seed: int, exponent: int, *shape: int) -> jnp.ndarray:
    """Returns bfloat16 numbers of about 2**exponent, a part of them zeros."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=shape) * 2.0**exponent * (rng.random(shape) < 0.9)
    return jnp.asarray(numbers, jnp.bfloat16)


@PROPERTY
@given(m=EXTENTS, k=DEPTHS, seed=SEEDS, exponent=EXPONENTS, block=st.sampled_from([1, 128]))
def test_quantize_is_within_half_a_step(m, k, seed, exponent, block):
    """A value is off by at most 2**-4 of itself, or half the smallest step of its block."""
    x = normal(seed, exponent, m, k)
    q = fp8.quantize(x, block=(block, 128), implementation="xla")
    exact = np.asarray(x, np.float64)
    scales = np.asarray(q.scales, np.float64).repeat(block, 0)[:m].repeat(128, 1)[:, :k]
    got = np.asarray(q.values.astype(jnp.float32), np.float64) * scales
    bound = np.maximum(np.abs(exact) * 2.0**-4, scales * 2.0**-10) * (1 + 2.0**-20)
    assert (np.abs(got - exact) <= bound).all()
    assert np.abs(np.asarray(q.values.astype(jnp.float32))).max() <= MAX_E4M3


@pytest.mark.parametrize("implementation", ["xla", "sim"])
@PROPERTY
@given(m=EXTENTS, n=EXTENTS, k=DEPTHS, seed=SEEDS, lhs=EXPONENTS, rhs=EXPONENTS)
def test_gemm_is_the_product(implementation, m, n, k, seed, lhs, rhs):
    x = fp8.quantize(normal(seed, lhs, m, k), implementation="xla")
    w = fp8.quantize(normal(seed + 1, rhs, n, k), block=(128, 128), implementation="xla")
    y = fp8.gemm(x, w, preferred_element_type=jnp.float32, implementation=implementation)
    assert_gemm_close(y, x, w, implementation=implementation)


@pytest.mark.parametrize("implementation", ["xla", "sim"])
@PROPERTY
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5), n=EXTENTS, k=DEPTHS, seed=SEEDS)
def test_grouped_gemm_is_a_product_for_each_group(implementation, sizes, n, k, seed):
    x = fp8.quantize(normal(seed, 0, max(1, sum(sizes)), k), implementation="xla")
    weights = normal(seed + 1, 0, len(sizes), n, k)
    w = fp8.quantize(weights, block=(128, 128), implementation="xla")
    sizes = jnp.asarray(sizes, jnp.int32)
    y = fp8.grouped_gemm(x, w, sizes, implementation=implementation)
    assert_grouped_gemm_close(y, x, w, sizes, implementation=implementation)
