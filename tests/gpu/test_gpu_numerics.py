# SPDX-License-Identifier: Apache-2.0
"""What the kernels compute on a GPU, against float64. The small cases also run simulated."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _dense import (
    assert_close,
    assert_same_bits,
    device_for,
    gemm_with,
    operands_for,
    run_poisoned,
)
from cases import E4M3, E5M2, GemmCase

import jax_fp8gemm as fp8
from jax_fp8gemm.testing import simulator

DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
# Summed with one sign, every cut of the tensor cores goes the same way. One chain of wgmma over
# K = 4096 is off by 7e-2 of the result, promotion every 128 of K leaves 6e-4.
PROMOTED_ERROR = 2e-3
# Kernels and simulator differ only where one fuses a multiply-add and the other does not.
FUSING_ERROR = 2.0**-20


def _name(dtype) -> str:
    return jnp.dtype(dtype).name


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", cases.EDGE_CASES, ids=str)
def test_edges(implementation, case):
    """Tails in every dimension, into memory that held NaN."""
    lhs, rhs = operands_for(case, implementation)
    out = run_poisoned(gemm_with(implementation), lhs, rhs, jnp.bfloat16)
    assert_close(out, lhs, rhs, implementation=implementation)


@pytest.mark.parametrize("case", cases.EMPTY_CASES, ids=str)
def test_empty(implementation, case):
    lhs, rhs = operands_for(case, implementation)
    out = gemm_with(implementation)(lhs, rhs)
    assert out.shape == (case.m, case.n) and not np.asarray(out).any()


@pytest.mark.hopper
@pytest.mark.parametrize("dtype", DTYPES, ids=_name)
@pytest.mark.parametrize("case", cases.EDGE_CASES, ids=str)
def test_edges_in_every_output_dtype(case, dtype):
    lhs, rhs = operands_for(case, "cuda", seed=10)
    call = gemm_with("cuda", preferred_element_type=dtype)
    assert_close(run_poisoned(call, lhs, rhs, dtype), lhs, rhs, implementation="cuda")


@pytest.mark.hopper
@pytest.mark.parametrize("case", cases.DECODE_CASES + cases.PREFILL_CASES, ids=str)
def test_model_shapes(case):
    lhs, rhs = operands_for(case, "cuda")
    out = run_poisoned(gemm_with("cuda"), lhs, rhs, jnp.bfloat16)
    assert_close(out, lhs, rhs, implementation="cuda")


@pytest.mark.hopper
@pytest.mark.parametrize("case", cases.SQUARE_CASES, ids=str)
def test_squares(case):
    lhs, rhs = operands_for(case, "cuda")
    out = run_poisoned(gemm_with("cuda"), lhs, rhs, jnp.bfloat16)
    assert_close(out, lhs, rhs, implementation="cuda")


@pytest.mark.parametrize("rhs_dtype", [E4M3, E5M2], ids=_name)
@pytest.mark.parametrize("lhs_dtype", [E4M3, E5M2], ids=_name)
def test_fp8_types(implementation, lhs_dtype, rhs_dtype):
    case = GemmCase("fp8_types", 130, 264, 400)
    lhs, rhs = operands_for(case, implementation, lhs_dtype=lhs_dtype, rhs_dtype=rhs_dtype)
    out = run_poisoned(gemm_with(implementation), lhs, rhs, jnp.bfloat16)
    assert_close(out, lhs, rhs, implementation=implementation)


@pytest.mark.parametrize("dtype", DTYPES, ids=_name)
def test_rhs_with_a_scale_per_row(implementation, dtype):
    """Both operands with 1x128 blocks, as a weight gradient has them."""
    case = GemmCase("row_scales", 136, 264, 400)
    lhs, rhs = operands_for(case, implementation, rhs_block=(1, 128))
    call = gemm_with(implementation, preferred_element_type=dtype)
    out = run_poisoned(call, lhs, rhs, dtype)
    assert_close(out, lhs, rhs, implementation=implementation)


@pytest.mark.parametrize("dtype", DTYPES, ids=_name)
def test_accumulator(implementation, dtype):
    """Added before the one rounding, also where the output's rows had to be padded."""
    for n in (264, 131):
        case = GemmCase("accumulator", 150, n, 272)
        lhs, rhs = operands_for(case, implementation, seed=n)
        accumulator = cases.normal((case.m, case.n), 7, dtype)
        accumulator = jax.device_put(accumulator, device_for(implementation))
        out = gemm_with(implementation, accumulator=accumulator, preferred_element_type=dtype)(
            lhs, rhs
        )
        assert_close(out, lhs, rhs, accumulator, implementation=implementation)


def _relative_bias(out, lhs, rhs) -> float:
    want = (
        np.asarray(lhs.dequantize(jnp.float32), np.float64)
        @ np.asarray(rhs.dequantize(jnp.float32), np.float64).T
    )
    return float(np.abs((np.asarray(out, np.float64) - want) / want).max())


@pytest.mark.hopper
@pytest.mark.parametrize("k", [4096, 16384])
def test_sums_of_one_sign_are_promoted(k):
    lhs, rhs = operands_for(GemmCase("positive", 256, 512, k), "cuda", positive=True)
    out = gemm_with("cuda", preferred_element_type=jnp.float32)(lhs, rhs)
    assert _relative_bias(out, lhs, rhs) < PROMOTED_ERROR


@pytest.mark.parametrize("k", [1024])
def test_sums_of_one_sign_in_the_simulated_numerics(simulated, k):
    """The bound of the test above, against the model of the tensor cores."""
    lhs, rhs = operands_for(GemmCase("positive", 64, 128, k), "sim", positive=True)
    with simulator(numerics="hopper"):
        out = gemm_with("sim", preferred_element_type=jnp.float32)(lhs, rhs).block_until_ready()
    bias = _relative_bias(out, lhs, rhs)
    assert 1e-5 < bias < PROMOTED_ERROR


@pytest.mark.hopper
@pytest.mark.parametrize("positive", [False, True])
def test_gpu_rounds_as_the_simulator(simulated, positive):
    """The 13-bit accumulation, element by element: 1e-4 apart without it, 1e-6 with it."""
    case = GemmCase("numerics", 192, 256, 1024)
    lhs, rhs = operands_for(case, "cuda", positive=positive)
    out = gemm_with("cuda", preferred_element_type=jnp.float32)(lhs, rhs)
    with simulator(numerics="hopper", shadow="off"):
        simulated = gemm_with("sim", preferred_element_type=jnp.float32)(
            *operands_for(case, "sim", positive=positive)
        ).block_until_ready()
    magnitude = np.abs(np.asarray(lhs.dequantize(jnp.float32))) @ np.abs(
        np.asarray(rhs.dequantize(jnp.float32)).T
    )
    error = np.abs(np.asarray(out) - np.asarray(simulated)) / magnitude
    assert error.max() < FUSING_ERROR


@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_extreme_scales(implementation, value):
    case = GemmCase("scales", 65, 136, 256)
    lhs, rhs = operands_for(case, implementation)
    scaled = fp8.BlockScaled(lhs.values, lhs.scales * value, lhs.block)
    out = gemm_with(implementation, preferred_element_type=jnp.float32)(scaled, rhs)
    assert_close(out, scaled, rhs, implementation=implementation)


def test_non_finite_values_stay_in_their_row_and_column(implementation):
    case = GemmCase("nan", 130, 136, 256)
    lhs, rhs = operands_for(case, implementation)
    values = np.array(lhs.values)
    values[70, 200] = np.nan
    values = jax.device_put(values, device_for(implementation))
    dirty = fp8.BlockScaled(values, lhs.scales, lhs.block)
    call = gemm_with(implementation)
    clean, out = np.asarray(call(lhs, rhs)), np.asarray(call(dirty, rhs))
    assert np.isnan(out[70].astype(np.float32)).all()
    assert_same_bits(np.delete(out, 70, axis=0), np.delete(clean, 70, axis=0))
