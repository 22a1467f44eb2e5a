# SPDX-License-Identifier: Apache-2.0
"""The quantize kernels, simulated, against plain JAX: every bit but those of a NaN."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _quantizers import GROUPED_QUANTIZERS, QUANTIZERS
from cases import E4M3, E5M2, GROUPED_CASES

import jax_fp8gemm as fp8
from jax_fp8gemm import testing
from jax_fp8gemm._src.native import sim_library
from jax_fp8gemm._src.ops.quantizer import Operands, Quantizer
from jax_fp8gemm._src.transforms.apply import apply

pytestmark = pytest.mark.usefixtures("simulator_library")

X_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
# Whole tiles; one element; rows and columns that no vector, warp or tile divides; a batch.
SHAPES = [(128, 128), (1, 1), (13, 200), (67, 131), (130, 260), (2, 3, 5, 130)]
every_format = pytest.mark.parametrize("scale_format", ["float32", "pow2"])
every_dtype = pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=lambda d: jnp.dtype(d).name)
every_x_dtype = pytest.mark.parametrize("x_dtype", X_DTYPES, ids=lambda d: jnp.dtype(d).name)
every_quantizer = pytest.mark.parametrize("name", QUANTIZERS)
every_grouped_quantizer = pytest.mark.parametrize("name", GROUPED_QUANTIZERS)


def bits(x) -> np.ndarray:
    """Returns bit patterns, one for all NaN."""
    x = np.asarray(x)
    patterns = x.view(f"uint{8 * x.dtype.itemsize}").astype(np.int64)
    return np.where(np.isnan(x.astype(np.float32)), -1, patterns)


def assert_same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(bits(a), bits(b))


def assert_kernel_is_plain_jax(quantize, *arguments, **options):
    got, want = (
        quantize(*arguments, **options, implementation=implementation)
        for implementation in ("sim", "xla")
    )
    assert_same_bits(got, want)


def spoiled(x: np.ndarray, kind: str, rng) -> np.ndarray:
    """Returns x with numbers of a kind that breaks a careless quantizer."""
    x = x.astype(np.float32)
    if kind == "every_exponent":
        with np.errstate(over="ignore"):
            return x * np.exp2(rng.integers(-149, 128, x.shape)).astype(np.float32)
    if kind == "zeros":
        x[..., :130] = 0
        return x
    positions = rng.integers(0, x.size, 6)
    x.reshape(-1)[positions] = [np.nan, -np.nan, np.inf, -np.inf, np.finfo(np.float32).max, 0]
    return x


@pytest.mark.sampled(17)
@every_quantizer
@every_x_dtype
@every_dtype
@every_format
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(name, x_dtype, dtype, scale_format, shape):
    x = cases.normal(shape, seed=1, dtype=x_dtype)
    assert_kernel_is_plain_jax(QUANTIZERS[name], x, dtype=dtype, scale_format=scale_format)


@pytest.mark.sampled(9)
@every_quantizer
@every_x_dtype
@every_dtype
@every_format
@pytest.mark.parametrize("kind", ["every_exponent", "zeros", "not_finite"])
def test_extremes(name, x_dtype, dtype, scale_format, kind):
    rng = np.random.default_rng(2)
    x = spoiled(rng.standard_normal((70, 260)), kind, rng)
    x = jnp.asarray(x).astype(x_dtype)
    assert_kernel_is_plain_jax(QUANTIZERS[name], x, dtype=dtype, scale_format=scale_format)


@every_dtype
@every_format
def test_every_float16_beside_every_scale(dtype, scale_format):
    """All 2^16 numbers, so that every rounding, subnormal and tie of the conversion occurs."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    numbers = np.where(np.isfinite(numbers), numbers, 0).reshape(-1, 64)
    top = np.exp2(np.arange(len(numbers)) % 40 - 8.0)[:, None] * np.float32(1.37)
    x = jnp.asarray(np.concatenate([numbers, top], 1), jnp.float32)
    assert_kernel_is_plain_jax(fp8.quantize, x, dtype=dtype, scale_format=scale_format)


@pytest.mark.sampled(6)
@every_grouped_quantizer
@every_x_dtype
@pytest.mark.parametrize("case", GROUPED_CASES, ids=str)
def test_groups(name, x_dtype, case):
    x = cases.normal((case.num_rows, 70), seed=3, dtype=x_dtype)
    x = x.at[sum(case.sizes) :].set(jnp.nan)
    assert_kernel_is_plain_jax(GROUPED_QUANTIZERS[name], x, case.group_sizes)


@pytest.mark.sampled(3)
@every_grouped_quantizer
@pytest.mark.parametrize("sizes", [(-4, 30, 30), (30, 2**31 - 1, 9), (2**31 - 1,) * 3, (1,) * 70])
def test_sizes_that_make_no_sense_and_many_groups(name, sizes):
    x = cases.normal((70, 24), seed=4)
    assert_kernel_is_plain_jax(GROUPED_QUANTIZERS[name], x, jnp.asarray(sizes, jnp.int32))


@pytest.mark.sampled(3)
@every_x_dtype
@every_format
@pytest.mark.parametrize("sizes", [None, (130, 0, 7), (0,), (1,) * 130, (300,)], ids=str)
def test_two_layouts_in_one_reading_are_those_of_two(x_dtype, scale_format, sizes):
    """Rows in no group, which may be more than the last block of the groups has room for, are 0."""
    x = cases.normal((300, 140), seed=9, dtype=x_dtype)
    options = {"scale_format": scale_format, "implementation": "sim"}
    if sizes is None:
        got = QUANTIZERS["rows_and_transposed"](x, **options)
        want = fp8.quantize_transposed(x, **options), fp8.quantize(x, **options)
    else:
        group_sizes = jnp.asarray(sizes, jnp.int32)
        got = GROUPED_QUANTIZERS["rows_and_k_grouped"](x, group_sizes, **options)
        valid = x.at[sum(sizes) :].set(0)
        want = fp8.quantize_k_grouped(x, group_sizes, **options), fp8.quantize(valid, **options)
    assert_same_bits(got, want)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("sizes", [None, (3, 100), (128, 0, 1)])
@pytest.mark.parametrize("shape", [(130, 64), (200, 200), (131, 131)], ids=str)
def test_float8_is_scaled_anew(shape, sizes):
    """Activations for a weight gradient: read as values and scales, without a copy in float32."""
    x = fp8.quantize(cases.normal(shape, seed=5), scale_format="pow2", implementation="xla")
    layout = "transposed" if sizes is None else "k_grouped"
    group_sizes = None if sizes is None else jnp.asarray(sizes, jnp.int32)
    got, want = (
        apply(
            Quantizer("test", layout, jnp.dtype(E4M3), "pow2", implementation),
            Operands(x.values, x.scales, group_sizes),
        )
        for implementation in ("sim", "xla")
    )
    assert_same_bits(*(fp8.BlockScaled(*leaves, (1, 128)) for leaves in (got, want)))


@every_quantizer
def test_transformations(name):
    """vmap makes a batch of one launch; jit and eager agree; what differentiates is plain JAX."""
    quantize = functools.partial(QUANTIZERS[name], implementation="sim")
    x = cases.normal((3, 130, 72), seed=6)
    want = QUANTIZERS[name](x, implementation="xla")
    assert_same_bits(jax.vmap(quantize)(x), want)
    assert_same_bits(jax.jit(quantize)(x), want)

    def loss(x, implementation):
        results = QUANTIZERS[name](x, implementation=implementation)
        return sum(scales.sum() for scales in jax.tree.leaves(results)[1::2])

    got, want = (jax.grad(loss)(x, i) for i in ("sim", "xla"))
    np.testing.assert_array_equal(got, want)


@every_grouped_quantizer
def test_vmap_of_groups(name):
    x = cases.normal((2, 70, 40), seed=7)
    sizes = jnp.asarray([[3, 60], [60, 3]], jnp.int32)
    got, want = (
        jax.vmap(functools.partial(GROUPED_QUANTIZERS[name], implementation=i))(x, sizes)
        for i in ("sim", "xla")
    )
    assert_same_bits(got, want)


@every_quantizer
@pytest.mark.parametrize("scheduler", ["starve_warp", "lifo", "random"])
def test_barriers_order_everything(name, scheduler):
    """Under the shadows, whatever the schedule; and without bank conflicts."""
    x = cases.normal((128, 256), seed=8, dtype=jnp.bfloat16)
    before = sim_library.stats()
    with testing.simulator(seed=1, scheduler=scheduler, shadow="happens_before"):
        assert_kernel_is_plain_jax(QUANTIZERS[name], x)
    after = sim_library.stats()
    assert after["launches"] == before["launches"] + 1
    assert after["bank_conflicts"] == before["bank_conflicts"]


def test_no_kernel_where_there_is_nothing_to_quantize():
    for shape in ((0, 128), (4, 0), (0, 3, 4)):
        for quantize in QUANTIZERS.values():
            assert_kernel_is_plain_jax(quantize, jnp.zeros(shape))


def test_other_platforms_are_refused():
    with pytest.raises(NotImplementedError, match="'sim'.*'cuda'"):
        jax.jit(functools.partial(fp8.quantize, implementation="sim")).trace(
            jnp.ones((4, 128))
        ).lower(lowering_platforms=("cuda",))
