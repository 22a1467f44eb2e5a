# SPDX-License-Identifier: Apache-2.0
"""quantize against NumPy, and what it promises about zeros, extremes and non-finite values."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import E4M3, E5M2, normal

import jax_fp8gemm as fp8

BLOCKS = [(1, 128), (128, 128)]
SHAPES = [(1, 1), (1, 128), (3, 200), (128, 128), (130, 257), (2, 3, 5, 130), (0, 128), (4, 0)]
TINY = np.finfo(np.float32).tiny


def numpy_scales(x: np.ndarray, block, dtype) -> np.ndarray:
    """Returns amax / max per block, by the text book."""
    *lead, rows, columns = x.shape
    scales = np.ones((*lead, -(-rows // block[0]), -(-columns // block[1])), np.float32)
    for r in range(scales.shape[-2]):
        for c in range(scales.shape[-1]):
            rows_of, columns_of = (
                slice(i * b, (i + 1) * b) for i, b in zip((r, c), block, strict=True)
            )
            amax = np.abs(x[..., rows_of, columns_of]).max(axis=(-2, -1))
            scale = np.maximum(amax / np.float32(jnp.finfo(dtype).max), TINY)
            scales[..., r, c] = np.where(amax == 0, np.float32(1), scale)
    return scales


@pytest.mark.sampled(4)
@pytest.mark.parametrize("in_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_numpy(shape, block, dtype, in_dtype):
    x = normal(shape, seed=7, dtype=in_dtype)
    got = fp8.quantize(x, block, dtype=dtype)
    exact = np.asarray(x, np.float32)
    assert (got.shape, got.dtype, got.block) == (shape, dtype, block)
    np.testing.assert_array_equal(got.scales, numpy_scales(exact, block, dtype))
    # Half a step of the widest binade below amax, wherever in its block a value lies.
    half_step = float(jnp.finfo(dtype).eps) / 2
    limit = np.abs(exact) * half_step * (1 + 1e-6) + float(jnp.finfo(dtype).smallest_subnormal) * (
        np.asarray(got.scales).max(initial=0) / 2
    )
    assert (np.abs(np.asarray(got.dequantize()) - exact) <= limit).all()


@pytest.mark.parametrize("implementation", ["xla", "sim"])
@pytest.mark.parametrize("scale_format", ["float32", "pow2"])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_is_the_formula_of_the_docstring_bit_by_bit(
    dtype, scale_format, implementation, simulator_library
):
    """And so is `dequantize`: over all exponents at which nothing is subnormal."""
    x = np.asarray(normal((24, 512), seed=3)) + np.float32(0.01)
    x = np.ldexp(x, np.linspace(-100, 120, 24, dtype=int)[:, None])
    got = fp8.quantize(x, dtype=dtype, scale_format=scale_format, implementation=implementation)
    scales = numpy_scales(x, (1, 128), dtype)
    if scale_format == "pow2":
        scales = np.exp2(np.ceil(np.log2(scales, dtype=np.float64))).astype(np.float32)
    repeated = scales.repeat(128, axis=1)
    values = (x * (np.float32(1) / repeated)).astype(dtype)
    assert np.asarray(got.scales).tobytes() == scales.tobytes()
    assert np.asarray(got.values).tobytes() == values.tobytes()
    dequantized = values.astype(np.float32) * repeated
    near = np.abs(dequantized) >= TINY
    np.testing.assert_array_equal(np.asarray(got.dequantize())[near], dequantized[near])


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", [(0, 128), (2, 3, 5, 130), (130, 257)], ids=str)
def test_operands_of_other_tests_have_its_bits(shape, block, dtype):
    x = normal(shape, seed=4).at[..., :128].set(0)
    got, want = cases.quantize(x, block, dtype=dtype), fp8.quantize(x, block, dtype=dtype)
    assert (got.shape, got.dtype, got.block) == (want.shape, want.dtype, want.block)
    assert np.asarray(got.values).tobytes() == np.asarray(want.values).tobytes()
    assert np.asarray(got.scales).tobytes() == np.asarray(want.scales).tobytes()


@pytest.mark.parametrize("block", BLOCKS)
def test_the_largest_value_of_a_block_is_the_largest_of_the_dtype(block):
    x = normal((256, 512), seed=1)
    values = np.abs(np.asarray(fp8.quantize(x, block).values, np.float32))
    amax = values.reshape(256 // block[0], block[0], 4, 128).max(axis=(1, 3))
    np.testing.assert_array_equal(amax, 448)


@pytest.mark.parametrize("block", BLOCKS)
def test_zero_block_has_scale_one(block):
    x = normal((256, 256), seed=1).at[:128, 128:].set(0)
    got = fp8.quantize(x, block)
    scales = np.asarray(got.scales)
    zero_rows = 128 // block[0]
    np.testing.assert_array_equal(scales[:zero_rows, 1], 1)
    assert (scales[zero_rows:] != 1).all() and (scales[:, 0] != 1).all()
    np.testing.assert_array_equal(got.dequantize()[:128, 128:], 0)


@pytest.mark.parametrize("amax", [1e-36, 1e-38, 1e-40, 1e-45])
def test_tiny_block_has_the_smallest_normal_scale(amax):
    got = fp8.quantize(jnp.full((1, 128), amax, jnp.float32))
    np.testing.assert_array_equal(got.scales, TINY)
    assert np.isfinite(np.asarray(got.dequantize())).all()


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("scale_format", ["float32", "pow2"])
def test_finite_blocks_stay_finite_over_the_whole_range(scale_format, dtype):
    largest = np.finfo(np.float32).max
    amax = np.concatenate([largest / 2.0 ** np.arange(276), np.nextafter(largest, 0)[None]])
    x = jnp.asarray(amax[:, None] * np.linspace(-1, 1, 128), jnp.float32)
    got = fp8.quantize(x, dtype=dtype, scale_format=scale_format)
    assert np.isfinite(np.asarray(got.scales)).all() and (np.asarray(got.scales) >= TINY).all()
    assert np.isfinite(np.asarray(got.dequantize())).all()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("scale_format", ["float32", "pow2"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("position", [(0, 0), (3, 5), (127, 127)])
def test_non_finite_values_spoil_their_block_alone(position, block, scale_format, dtype, bad):
    x = normal((256, 256), seed=2).at[position].set(bad)
    clean = fp8.quantize(x.at[position].set(0), block, dtype=dtype, scale_format=scale_format)
    got = np.asarray(fp8.quantize(x, block, dtype=dtype, scale_format=scale_format).dequantize())
    inside = np.zeros((256, 256), bool)
    row, column = (p // b * b for p, b in zip(position, block, strict=True))
    inside[row : row + block[0], column : column + block[1]] = True
    assert not np.isfinite(got[inside]).any()
    np.testing.assert_array_equal(got[~inside], np.asarray(clean.dequantize())[~inside])


def test_pow2_rounds_scales_up_to_powers_of_two():
    x = normal((256, 1024), seed=5)
    plain = np.asarray(fp8.quantize(x).scales)
    pow2 = np.asarray(fp8.quantize(x, scale_format="pow2").scales)
    mantissa, _ = np.frexp(pow2)
    np.testing.assert_array_equal(mantissa, 0.5)
    assert (plain <= pow2).all() and (pow2 < 2 * plain).all()


def test_pow2_keeps_a_scale_that_is_one_already():
    exact = jnp.asarray(448 * 2.0 ** np.arange(-20, 20), jnp.float32)[:, None]
    above = jnp.nextafter(exact, jnp.full_like(exact, jnp.inf))
    scales = [np.asarray(fp8.quantize(x, scale_format="pow2").scales) for x in (exact, above)]
    np.testing.assert_array_equal(scales[0][:, 0], 2.0 ** np.arange(-20, 20))
    np.testing.assert_array_equal(scales[1], 2 * scales[0])


@pytest.mark.parametrize("block", BLOCKS)
def test_jit_and_vmap_give_the_same_bits(block):
    x = normal((3, 130, 200), seed=8)
    want = fp8.quantize(x, block)
    for got in (
        jax.jit(lambda x: fp8.quantize(x, block))(x),
        jax.vmap(lambda x: fp8.quantize(x, block))(x),
        jax.tree.map(lambda *t: jnp.stack(t), *(fp8.quantize(row, block) for row in x)),
    ):
        np.testing.assert_array_equal(got.values, want.values)
        np.testing.assert_array_equal(got.scales, want.scales)


def test_takes_numpy_arrays():
    x = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    np.testing.assert_array_equal(fp8.quantize(x).values, fp8.quantize(jnp.asarray(x)).values)
