# SPDX-License-Identifier: Apache-2.0
"""The quantize kernels on a GPU, against plain JAX on the same device: every bit but NaN's."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_activation
from _dense import assert_same_bits, device_for
from _quantizers import GROUPED_QUANTIZERS, QUANTIZERS
from cases import E4M3, E5M2

import jax_fp8gemm as fp8

every_quantizer = pytest.mark.parametrize("name", QUANTIZERS)
every_grouped_quantizer = pytest.mark.parametrize("name", GROUPED_QUANTIZERS)


def _check(quantize, implementation: str, *arguments, **options) -> None:
    arguments = jax.device_put(arguments, device_for(implementation))
    got, want = (
        jax.jit(functools.partial(quantize, **options, implementation=i))(*arguments)
        for i in (implementation, "xla")
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        nan = np.isnan(np.asarray(a, np.float32))
        np.testing.assert_array_equal(nan, np.isnan(np.asarray(b, np.float32)))
        assert_same_bits(*(jnp.where(nan, jnp.zeros_like(x), x) for x in (a, b)))


@pytest.mark.sampled(17)
@every_quantizer
@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("scale_format", ["float32", "pow2"])
@pytest.mark.parametrize("shape", [(128, 128), (13, 200), (67, 131), (2, 130, 260)], ids=str)
def test_edges(implementation, name, dtype, scale_format, shape):
    for x_dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        x = cases.normal(shape, seed=1, dtype=x_dtype)
        _check(QUANTIZERS[name], implementation, x, dtype=dtype, scale_format=scale_format)


@pytest.mark.sampled(3)
@every_quantizer
@pytest.mark.parametrize("scale_format", ["float32", "pow2"])
def test_extremes(implementation, name, scale_format):
    """Every exponent of float32, subnormals too; and numbers that are not finite."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((64, 256)) * np.exp2(rng.integers(-149, 126, (64, 256)))
    x[:4, 130] = [np.nan, np.inf, -np.inf, np.finfo(np.float32).max]
    for dtype in (E4M3, E5M2):
        x = jnp.asarray(x, jnp.float32)
        _check(QUANTIZERS[name], implementation, x, dtype=dtype, scale_format=scale_format)


@pytest.mark.sampled(6)
@every_grouped_quantizer
@pytest.mark.parametrize("case", cases.GROUPED_CASES, ids=str)
def test_groups(implementation, name, case):
    x = cases.normal((case.num_rows, 70), seed=3, dtype=jnp.bfloat16)
    x = x.at[sum(case.sizes) :].set(jnp.nan)
    _check(GROUPED_QUANTIZERS[name], implementation, x, case.group_sizes)


@pytest.mark.hopper
@every_quantizer
@pytest.mark.parametrize("shape", [(8192, 7168), (4099, 7170)], ids=str)
def test_large(name, shape):
    _check(QUANTIZERS[name], "cuda", cases.normal(shape, seed=4, dtype=jnp.bfloat16))


@pytest.mark.hopper
@every_grouped_quantizer
@pytest.mark.parametrize("num_groups", [8, 256, 512])
def test_large_groups(name, num_groups):
    x = cases.normal((16384, 2048), seed=5, dtype=jnp.bfloat16)
    sizes = np.random.default_rng(6).multinomial(16384, np.ones(num_groups) / num_groups)
    _check(GROUPED_QUANTIZERS[name], "cuda", x, jnp.asarray(sizes, jnp.int32))


@pytest.mark.hopper
@pytest.mark.parametrize("name", [*QUANTIZERS, *GROUPED_QUANTIZERS])
def test_repeated_runs_give_the_same_bits(name):
    """A missing barrier would show as a difference now and then."""
    x = jax.device_put(cases.normal((1024, 2048), seed=7, dtype=jnp.bfloat16), device_for("cuda"))
    sizes = jnp.asarray((127, 0, 1, 700, 129), jnp.int32)
    if name in QUANTIZERS:
        quantize = QUANTIZERS[name]
    else:
        quantize = functools.partial(GROUPED_QUANTIZERS[name], group_sizes=sizes)
    quantize = jax.jit(functools.partial(quantize, implementation="cuda"))
    first = jax.device_get(quantize(x))
    for _ in range(200):
        again = jax.device_get(quantize(x))
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(first), strict=True):
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


# ---- Activations, which no two implementations compute alike -------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["swiglu", "geglu", "gelu"])
@pytest.mark.parametrize("x_dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_activations(implementation, kind, x_dtype):
    """As tests/test_activation.py holds the simulator to the exact ones."""
    gate, up = 3 * cases.normal((90, 40), seed=1), cases.normal((90, 40), seed=2, dtype=x_dtype)
    gate, up = jax.device_put((gate.astype(x_dtype), up), device_for(implementation))
    test_activation.check(kind, implementation, gate, up, "float32")


@pytest.mark.parametrize("x_dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("shape", [(90, 40), (3, 13, 200), (64, 512)], ids=str)
def test_rms_norm(implementation, shape, x_dtype):
    """The factors of rows are given: roots need not be the same bits on each device."""

    def quantize(lazy, **options):
        return fp8.quantize(lazy, **options)

    lazy = fp8.rms_norm(
        cases.normal(shape, seed=1, dtype=x_dtype), cases.normal(shape[-1:], seed=2)
    )
    _check(quantize, implementation, lazy)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("sizes", [(3, 50, 0), (-4, 30, 90), (2**31 - 1,) * 3, (1,) * 70], ids=str)
def test_valid_rows(implementation, sizes):
    count = min(int(np.clip(sizes, 0, 90).sum()), 90)
    x = cases.normal((90, 150), seed=3, dtype=jnp.bfloat16).at[count:].set(jnp.nan)

    def quantize(x, group_sizes, **options):
        return fp8.quantize(x, group_sizes=group_sizes, **options)

    _check(quantize, implementation, x, jnp.asarray(sizes, jnp.int32))
