# SPDX-License-Identifier: Apache-2.0
"""The "xla" implementation, oracle of the other ones, against the float64 product."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_fp8gemm as fp8
from jax_fp8gemm.testing import assert_gemm_close

RESULT_DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32]
LARGE = cases.GemmCase("long_k", 48, 136, 16384)


def xla_gemm(lhs, rhs, **kwargs):
    return fp8.gemm(lhs, rhs, implementation="xla", **kwargs)


@pytest.mark.sampled(16)
@pytest.mark.parametrize("dtype", RESULT_DTYPES)
@pytest.mark.parametrize("rhs_block", [(1, 128), (128, 128)], ids=str)
@pytest.mark.parametrize("case", (*cases.EDGE_CASES, LARGE), ids=str)
def test_edge_shapes(case, rhs_block, dtype):
    lhs, rhs = cases.gemm_operands(case, rhs_block=rhs_block)
    out = xla_gemm(lhs, rhs, preferred_element_type=dtype)
    assert (out.shape, out.dtype) == ((case.m, case.n), dtype)
    assert_gemm_close(out, lhs, rhs)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("lhs_dtype", [cases.E4M3, cases.E5M2])
@pytest.mark.parametrize("rhs_dtype", [cases.E4M3, cases.E5M2])
def test_operand_dtypes(lhs_dtype, rhs_dtype, positive):
    lhs, rhs = cases.gemm_operands(
        cases.EDGE_CASES[-1], lhs_dtype=lhs_dtype, rhs_dtype=rhs_dtype, positive=positive
    )
    out = xla_gemm(lhs, rhs, preferred_element_type=jnp.float32)
    assert_gemm_close(out, lhs, rhs)


@pytest.mark.parametrize("dtype", RESULT_DTYPES)
def test_accumulator_is_added_before_the_one_rounding(dtype):
    case = cases.EDGE_CASES[-1]
    lhs, rhs = cases.gemm_operands(case)
    accumulator = 30 * cases.normal((case.m, case.n), seed=9, dtype=dtype)
    out = xla_gemm(lhs, rhs, accumulator=accumulator, preferred_element_type=dtype)
    exact = xla_gemm(lhs, rhs, preferred_element_type=jnp.float32)
    np.testing.assert_array_equal(out, (exact + accumulator.astype(jnp.float32)).astype(dtype))
    assert_gemm_close(out, lhs, rhs, accumulator)


@pytest.mark.parametrize("case", cases.EMPTY_CASES, ids=str)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("implementation", [None, "xla"])
def test_nothing_to_multiply(implementation, accumulate, case):
    lhs, rhs = cases.gemm_operands(case)
    accumulator = cases.normal((case.m, case.n), seed=2, dtype=jnp.bfloat16)
    out = fp8.gemm(
        lhs, rhs, accumulator=accumulator if accumulate else None, implementation=implementation
    )
    np.testing.assert_array_equal(out, accumulator if accumulate else jnp.zeros_like(accumulator))


def test_plain_tuples_have_the_block_their_shapes_say():
    case = cases.EDGE_CASES[-1]
    for rhs_block in ((1, 128), (128, 128)):
        lhs, rhs = cases.gemm_operands(case, rhs_block=rhs_block)
        plain = xla_gemm((lhs.values, lhs.scales), [rhs.values, rhs.scales])
        np.testing.assert_array_equal(plain, xla_gemm(lhs, rhs))


def test_one_row_means_the_same_in_either_block():
    lhs, rhs = cases.gemm_operands(cases.EDGE_CASES[3])
    row = fp8.BlockScaled(rhs.values, rhs.scales, (1, 128))
    np.testing.assert_array_equal(xla_gemm(lhs, rhs), xla_gemm(lhs, row))
    np.testing.assert_array_equal(xla_gemm(lhs, rhs), xla_gemm(lhs, (rhs.values, rhs.scales)))


def test_scales_of_zero_and_overflowing_scales():
    lhs, rhs = cases.gemm_operands(cases.EDGE_CASES[1])
    zero = fp8.BlockScaled(lhs.values, jnp.zeros_like(lhs.scales), (1, 128))
    np.testing.assert_array_equal(xla_gemm(zero, rhs), 0)
    huge = fp8.BlockScaled(lhs.values, jnp.full_like(lhs.scales, 3e38), (1, 128))
    assert not np.isfinite(np.asarray(xla_gemm(huge, rhs), np.float32)).all()


def test_float16_overflows_to_infinity():
    lhs, rhs = cases.gemm_operands(cases.EDGE_CASES[1], positive=True)
    large = fp8.BlockScaled(lhs.values, lhs.scales * 2**12, (1, 128))
    out = np.asarray(xla_gemm(large, rhs, preferred_element_type=jnp.float16))
    assert np.isposinf(out).all()
    assert_gemm_close(jnp.asarray(out), large, rhs)


def test_non_finite_operands_reach_their_row_alone():
    x = cases.normal((8, 256), seed=0).at[2, 3].set(jnp.nan)
    lhs, rhs = fp8.quantize(x), cases.gemm_operands(cases.GemmCase("", 8, 16, 256))[1]
    out = np.asarray(xla_gemm(lhs, rhs, preferred_element_type=jnp.float32))
    assert np.isnan(out[2]).all() and np.isfinite(np.delete(out, 2, axis=0)).all()


def test_calls_with_the_same_options_trace_once():
    traces = []

    @jax.jit
    def f(lhs, rhs):
        traces.append(None)
        return xla_gemm(lhs, rhs)

    for seed in range(3):
        f(*cases.gemm_operands(cases.EDGE_CASES[1], seed=seed))
    assert len(traces) == 1
