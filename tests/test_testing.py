# SPDX-License-Identifier: Apache-2.0
"""The judges themselves: they pass what is right and fail what is wrong, with the place of it."""

import cases
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_fp8gemm as fp8
from jax_fp8gemm._src.native import sim_library
from jax_fp8gemm.testing import (
    GLOBAL_TOLERANCE,
    TOLERANCE,
    assert_gemm_close,
    oracle,
    relative_error,
    simulator,
)

CASE = cases.GemmCase("", 48, 136, 512)
RESULT_DTYPES = ("bfloat16", "float16", "float32")
IMPLEMENTATIONS = ("xla", "sim", "cuda")


def exact_product(lhs, rhs):
    def float64(x):
        return np.asarray(x.dequantize(), np.float64)

    return float64(lhs) @ float64(rhs).T


def magnitude(lhs, rhs):
    return np.abs(np.asarray(lhs.dequantize(), np.float64)) @ (
        np.abs(np.asarray(rhs.dequantize(), np.float64)).T
    )


def test_table_is_complete_and_keeps_the_promises():
    assert set(TOLERANCE) == {(d, i) for d in RESULT_DTYPES for i in IMPLEMENTATIONS}
    assert all(2**-8 <= TOLERANCE["bfloat16", i] < 2**-7 for i in IMPLEMENTATIONS)
    assert GLOBAL_TOLERANCE["bfloat16"] == 1e-5


def test_relative_error_is_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 50))
    want = 1 - 2 * (x @ y) / (x @ x + y @ y)
    assert relative_error(x, y) == pytest.approx(want, rel=1e-12)
    assert relative_error(x * 1e200, y * 1e200) == pytest.approx(want, rel=1e-12)
    assert relative_error(x, x) == 0
    assert relative_error(0 * x, 0 * x) == 0
    assert relative_error([], []) == 0
    assert np.isnan(relative_error(x, np.where(x > 1, np.nan, x)))


@pytest.mark.parametrize("implementation", [None, *IMPLEMENTATIONS])
@pytest.mark.parametrize("dtype", RESULT_DTYPES)
def test_passes_the_correctly_rounded_product(dtype, implementation):
    lhs, rhs = cases.gemm_operands(CASE)
    out = jnp.asarray(exact_product(lhs, rhs).astype(jnp.dtype(dtype)))
    assert_gemm_close(out, lhs, rhs, implementation=implementation)


def rounded(exact, dtype):
    """Returns the nearest numbers of a dtype, ties to even, subnormals and infinities too."""
    dtype = jnp.dtype(dtype)
    limits = jnp.finfo(dtype)
    _, exponent = np.frexp(exact)
    unit = np.ldexp(1.0, np.maximum(exponent - 1, limits.minexp) - limits.nmant)
    nearest = np.rint(exact / unit) * unit
    limit = float(limits.max) + np.ldexp(0.5, limits.maxexp - 1 - limits.nmant)
    return np.where(np.abs(exact) >= limit, np.sign(exact) * np.inf, nearest)


EXPONENTS = st.integers(-126, 119)  # of scales, whose values go up to 448


@pytest.mark.parametrize("dtype", RESULT_DTYPES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    lhs=st.lists(EXPONENTS, min_size=1, max_size=3),
    rhs=EXPONENTS,
    aim=st.none() | st.integers(-30, 20),
    accumulator=st.none() | st.integers(-40, 11),
)
def test_passes_every_correctly_rounded_product(dtype, seed, lhs, rhs, aim, accumulator):
    """Rows of all sizes beside one another; with `aim`, around the end of float16's range."""
    rng = np.random.default_rng(seed)
    exponents = np.resize(lhs, (16, 1)) % 3 + aim - rhs - 10 if aim is not None else lhs
    exponents = np.clip(np.resize(exponents, (16, 1)), -126, 119)
    values = rng.normal(size=(2, 16, 100)).astype(cases.E4M3)
    scales = np.ldexp(rng.uniform(1, 2, (16, 1)), exponents).astype(np.float32)
    a = fp8.BlockScaled(values[0], scales, (1, 128))
    b = fp8.BlockScaled(values[1], np.full((1, 1), 2.0**rhs, np.float32), (128, 128))
    exact = oracle.dense(oracle.float64(a), oracle.float64(b))[0]
    if accumulator is not None:
        accumulator = rng.normal(size=exact.shape) * 2.0**accumulator
        accumulator = accumulator.astype(jnp.dtype(dtype))
        exact = exact + accumulator.astype(np.float64)
    out = rounded(exact, dtype)
    with np.errstate(over="ignore"):
        stored = out.astype(jnp.dtype(dtype))
    np.testing.assert_array_equal(stored.astype(np.float64), out)
    for implementation in IMPLEMENTATIONS:
        assert_gemm_close(stored, a, b, accumulator, implementation=implementation)


@pytest.mark.parametrize(("dtype", "aim"), [("float16", -24), ("bfloat16", -126)])
def test_fails_results_off_by_more_than_a_step_around_zero(dtype, aim):
    """Correct to the sign only: subnormals are not left unjudged."""
    lhs, rhs = cases.gemm_operands(CASE)
    scale = 2.0**aim / np.abs(exact_product(lhs, rhs)).max()
    lhs = fp8.BlockScaled(lhs.values, lhs.scales * np.float32(8 * scale * 2**20), lhs.block)
    rhs = fp8.BlockScaled(rhs.values, rhs.scales * np.float32(2.0**-20), rhs.block)
    exact = exact_product(lhs, rhs)
    assert_gemm_close(jnp.asarray(rounded(exact, dtype).astype(jnp.dtype(dtype))), lhs, rhs)
    with pytest.raises(AssertionError, match="out of bounds"):
        assert_gemm_close(jnp.asarray(rounded(-exact, dtype).astype(jnp.dtype(dtype))), lhs, rhs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", RESULT_DTYPES)
def test_names_the_one_element_that_is_wrong(dtype, implementation):
    lhs, rhs = cases.gemm_operands(CASE)
    out = exact_product(lhs, rhs)
    out[7, 9] += 2 * TOLERANCE[dtype, implementation] * magnitude(lhs, rhs)[7, 9]
    with pytest.raises(AssertionError, match=rf"1 of {out.size} .*\(7, 9\).*got .* want"):
        assert_gemm_close(
            jnp.asarray(out.astype(jnp.dtype(dtype))), lhs, rhs, implementation=implementation
        )


def test_fails_a_bias_that_no_element_shows():
    lhs, rhs = cases.gemm_operands(CASE)
    out = exact_product(lhs, rhs) + 0.5 * TOLERANCE["bfloat16", "cuda"] * magnitude(lhs, rhs)
    with pytest.raises(AssertionError, match="relative error"):
        assert_gemm_close(jnp.asarray(out, jnp.bfloat16), lhs, rhs, implementation="cuda")


def test_tolerance_can_be_replaced():
    lhs, rhs = cases.gemm_operands(CASE)
    out = jnp.asarray(exact_product(lhs, rhs) + 2**-7 * magnitude(lhs, rhs), jnp.float32)
    with pytest.raises(AssertionError):
        assert_gemm_close(out, lhs, rhs, implementation="cuda")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_fails_non_finite_results_of_finite_operands(bad):
    lhs, rhs = cases.gemm_operands(CASE)
    out = exact_product(lhs, rhs)
    out[3, 4] = bad
    with pytest.raises(AssertionError, match=r"\(3, 4\)"):
        assert_gemm_close(jnp.asarray(out, jnp.bfloat16), lhs, rhs)


def test_wants_non_finite_results_of_non_finite_operands():
    lhs = fp8.quantize(cases.normal((48, 512), seed=0).at[5, 6].set(jnp.nan))
    _, rhs = cases.gemm_operands(CASE)
    out = fp8.gemm(lhs, rhs, implementation="xla")
    assert_gemm_close(out, lhs, rhs)
    with pytest.raises(AssertionError, match=r"\(5, 10\)"):
        assert_gemm_close(out.at[5, 10].set(0), lhs, rhs)


def test_wants_infinity_beyond_the_range_of_float16():
    lhs, rhs = cases.gemm_operands(CASE, positive=True)
    lhs = fp8.BlockScaled(lhs.values, lhs.scales * 2**12, lhs.block)
    out = fp8.gemm(lhs, rhs, implementation="xla", preferred_element_type=jnp.float16)
    assert_gemm_close(out, lhs, rhs)
    with pytest.raises(AssertionError, match=r"\(0, 0\)"):
        assert_gemm_close(out.at[0, 0].set(65504), lhs, rhs)


def test_counts_the_accumulator():
    lhs, rhs = cases.gemm_operands(CASE)
    accumulator = 1000 * cases.normal((48, 136), seed=1)
    out = jnp.asarray(exact_product(lhs, rhs) + np.asarray(accumulator, np.float64), jnp.float32)
    assert_gemm_close(out, lhs, rhs, accumulator)
    with pytest.raises(AssertionError):
        assert_gemm_close(out, lhs, rhs)


def test_simulator_options_are_restored(simulator_library):
    before = sim_library.options()
    with pytest.raises(KeyError), simulator(seed=2**63, timing="late", numerics="hopper"):
        inside = sim_library.options()
        raise KeyError
    assert inside == {**before, "seed": 2**63, "timing": 1, "numerics": 1}
    assert sim_library.options() == before


def test_simulator_counts_what_runs_inside(simulator_library):
    lhs = fp8.quantize(jnp.ones((64, 256)))
    rhs = fp8.quantize(jnp.ones((128, 256)), block=(128, 128))

    def run():
        fp8.gemm(lhs, rhs, implementation="sim").block_until_ready()

    run()
    with simulator() as counts:
        assert set(counts().values()) == {0}
        run()
        once = counts()
        run()
        twice = counts()
    assert once["launches"] == 1 and twice["launches"] == 2
    assert once["bytes_stored"] == 64 * 128 * 2
    # Of 64 rows and 32 of K each, in however many tiles the columns are.
    assert once["wgmma"] % (256 // 32) == 0 and twice["wgmma"] == 2 * once["wgmma"] > 0
