# SPDX-License-Identifier: Apache-2.0
"""Quantizers and products of any shape and size of numbers against float64 (hypothesis)."""

import cases
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import jax_fp8gemm as fp8
from jax_fp8gemm.testing import assert_gemm_close, assert_grouped_gemm_close

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("extension")]
PROPERTY = settings(max_examples=24, deadline=None, derandomize=True, database=None)
# Each is another program to compile.
FEWER = settings(PROPERTY, max_examples=8, phases=[Phase.explicit, Phase.generate])
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
    x = cases.quantize(normal(seed, lhs, m, k))
    w = cases.quantize(normal(seed + 1, rhs, n, k), (128, 128))
    y = fp8.gemm(x, w, preferred_element_type=jnp.float32, implementation=implementation)
    assert_gemm_close(y, x, w, implementation=implementation)


@pytest.mark.parametrize("implementation", ["xla", "sim"])
@PROPERTY
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5), n=EXTENTS, k=DEPTHS, seed=SEEDS)
def test_grouped_gemm_is_a_product_for_each_group(implementation, sizes, n, k, seed):
    x = cases.quantize(normal(seed, 0, max(1, sum(sizes)), k))
    w = cases.quantize(normal(seed + 1, 0, len(sizes), n, k), (128, 128))
    sizes = jnp.asarray(sizes, jnp.int32)
    y = fp8.grouped_gemm(x, w, sizes, implementation=implementation)
    assert_grouped_gemm_close(y, x, w, sizes, implementation=implementation)


@pytest.mark.parametrize("implementation", ["xla", "sim"])
@FEWER
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=4), n=EXTENTS, k=DEPTHS, seed=SEEDS)
def test_grouped_gemm_masked_is_a_product_for_each_group(implementation, counts, n, k, seed):
    x = cases.quantize(normal(seed, 0, len(counts), 40, k))
    w = cases.quantize(normal(seed + 1, 0, len(counts), n, k), (128, 128))
    masked_m = jnp.asarray(counts, jnp.int32)
    y = fp8.grouped_gemm_masked(x, w, masked_m, implementation=implementation)
    assert_grouped_gemm_close(y, x, w, masked_m, kind="masked", implementation=implementation)


@pytest.mark.parametrize("implementation", ["xla", "sim"])
@FEWER
@given(groups=st.lists(st.integers(-1, 2), min_size=1, max_size=3), n=EXTENTS, k=DEPTHS, seed=SEEDS)
def test_grouped_gemm_contiguous_is_a_product_for_each_group(implementation, groups, n, k, seed):
    """Groups in any order, each of 128 rows, and padding between them."""
    ids = jnp.asarray(np.repeat(groups, 128), jnp.int32)
    x = cases.quantize(normal(seed, 0, ids.size, k))
    w = cases.quantize(normal(seed + 1, 0, 3, n, k), (128, 128))
    y = fp8.grouped_gemm_contiguous(x, w, ids, implementation=implementation)
    assert_grouped_gemm_close(y, x, w, ids, kind="contiguous", implementation=implementation)


@pytest.mark.parametrize("implementation", ["xla", "sim"])
@FEWER
@given(
    sizes=st.lists(st.integers(0, 150), min_size=1, max_size=4), m=EXTENTS, n=EXTENTS, seed=SEEDS
)
def test_k_grouped_gemm_is_a_product_for_each_group(implementation, sizes, m, n, seed):
    tokens, group_sizes = max(1, sum(sizes)), jnp.asarray(sizes, jnp.int32)
    lhs, rhs = (
        fp8.quantize_k_grouped(normal(seed + i, 0, tokens, extent), group_sizes)
        for i, extent in enumerate((m, n))
    )
    y = fp8.k_grouped_gemm(lhs, rhs, group_sizes, implementation=implementation)
    assert_grouped_gemm_close(
        y, lhs, rhs, group_sizes, kind="k_grouped", implementation=implementation
    )


@FEWER
@given(m=EXTENTS, k=DEPTHS, seed=SEEDS, exponent=EXPONENTS)
def test_quantize_transposed_is_quantize_of_the_transpose(m, k, seed, exponent):
    x = normal(seed, exponent, m, k)
    got = fp8.quantize_transposed(x, implementation="xla")
    want = fp8.quantize(x.T, implementation="xla")
    np.testing.assert_array_equal(got.dequantize(), want.dequantize())


@pytest.mark.parametrize("implementation", ["xla", "sim"])
@FEWER
@given(m=EXTENTS, n=EXTENTS, k=DEPTHS, seed=SEEDS)
def test_dot_is_within_its_bound(implementation, m, n, k, seed):
    """Two roundings to e4m3, each of 2**-4 or of half a step, in every product that is added."""
    x, w = normal(seed, 0, m, k), normal(seed + 1, 0, k, n)
    y = fp8.dot(x, w, implementation=implementation, preferred_element_type=jnp.float32)
    assert_within_roundings(y, x, w)


@pytest.mark.parametrize("implementation", ["xla", "sim"])
@FEWER
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4), n=EXTENTS, k=DEPTHS, seed=SEEDS)
def test_ragged_dot_is_within_its_bound(implementation, sizes, n, k, seed):
    x, w = normal(seed, 0, sum(sizes) + 3, k), normal(seed + 1, 0, len(sizes), k, n)
    y = fp8.ragged_dot(
        x,
        w,
        jnp.asarray(sizes, jnp.int32),
        implementation=implementation,
        preferred_element_type=jnp.float32,
    )
    ends = np.cumsum([0, *sizes])
    for group, (first, last) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        assert_within_roundings(y[first:last], x[first:last], w[group])
    assert not y[ends[-1] :].any()


def assert_within_roundings(y, x, w, roundings: int = 1) -> None:
    """Checks a product of what was rounded to e4m3, x so many times."""
    exact_x, exact_w = (np.asarray(each, np.float64) for each in (x, w))
    steps_x, steps_w = (
        np.maximum(np.abs(exact) * 2.0**-4, np.abs(exact).max(initial=0) / MAX_E4M3 * 2.0**-9)
        for exact in (exact_x, exact_w)
    )
    steps_x *= roundings
    bound = steps_x @ np.abs(exact_w) + np.abs(exact_x) @ steps_w + steps_x @ steps_w
    error = np.abs(np.asarray(y, np.float64) - exact_x @ exact_w)
    # The kernels' sums of 128 products keep 13 fraction bits of the largest one.
    assert (error <= bound * 1.01 + 2.0**-12 * (np.abs(exact_x) @ np.abs(exact_w))).all()
