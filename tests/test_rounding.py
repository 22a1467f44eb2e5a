# SPDX-License-Identifier: Apache-2.0
"""Operands that the same program computes: rounded to their dtype before anything reads them.

XLA computes bfloat16 in float32 and may leave the rounding out between two operations of a program,
but what a kernel reads from memory is rounded. Plain JAX must give the same bits. What XLA makes of
the same for a GPU is in test_aot_rounding.py.
"""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_fp8gemm as fp8

jit = functools.partial(jax.jit, compiler_options=cases.AS_FOR_USERS)
M, N, K, G = 130, 136, 256, 3
sizes = jnp.asarray([50, 0, 70], jnp.int32)
QUANTIZERS = {
    "rows": fp8.quantize,
    "blocks": functools.partial(fp8.quantize, block=(128, 128)),
    "powers of two": functools.partial(fp8.quantize, scale_format="pow2"),
    "to e5m2": functools.partial(fp8.quantize, dtype=jnp.float8_e5m2),
    "transposed": fp8.quantize_transposed,
    "groups": lambda x, **options: fp8.quantize_k_grouped(x, sizes, **options),
}
PRODUCERS = {
    "product": lambda x, y: x * y,
    "residual": lambda x, y: x + x * y,
    "activation": lambda x, y: jax.nn.silu(x) * y,
    "sum": lambda x, y: x + jnp.cumsum(y, axis=0),
    "narrowed": lambda x, y: (x.astype(jnp.float32) * y.astype(jnp.float32)).astype(x.dtype),
}


def bits(tree):
    return [np.asarray(leaf).view(f"u{leaf.dtype.itemsize}") for leaf in jax.tree.leaves(tree)]


def assert_same_bits(got, want):
    for a, b in zip(bits(got), bits(want), strict=True):
        np.testing.assert_array_equal(a, b)


def operands(dtype):
    return cases.normal((M, K), seed=0, dtype=dtype), cases.normal((M, K), seed=1, dtype=dtype)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32], ids=str)
@pytest.mark.parametrize("producer", PRODUCERS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_quantizers_read_what_was_rounded(quantizer, producer, dtype):
    """What is quantized is the very array that the program returns beside it."""
    quantize = functools.partial(QUANTIZERS[quantizer], implementation="xla")

    @jit
    def program(x, y):
        return quantize(PRODUCERS[producer](x, y))

    @jit
    def produce(x, y):
        return PRODUCERS[producer](x, y)

    assert_same_bits(program(*operands(dtype)), quantize(produce(*operands(dtype))))


@pytest.mark.usefixtures("simulator_library")
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_plain_jax_and_kernels_agree_behind_a_producer(quantizer):
    def program(implementation):
        quantize = functools.partial(QUANTIZERS[quantizer], implementation=implementation)
        return jit(lambda x, y: quantize(x * y))(*operands(jnp.bfloat16))

    assert_same_bits(program("xla"), program("sim"))


ACCUMULATORS = {
    "gemm": lambda a, b, c: fp8.gemm(
        a, b, accumulator=c, preferred_element_type=c.dtype, implementation="xla"
    ),
    "vmap of gemm": lambda a, b, c: jax.vmap(
        lambda c: fp8.gemm(
            a, b, accumulator=c, preferred_element_type=c.dtype, implementation="xla"
        )
    )(c[None]),
    "k_grouped_gemm": lambda a, b, c: fp8.k_grouped_gemm(
        a,
        fp8.quantize(b.dequantize(), implementation="xla"),
        jnp.asarray([K], jnp.int32),
        accumulator=c[None],
        preferred_element_type=c.dtype,
        implementation="xla",
    ),
}


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_accumulators_are_rounded_before_they_are_added(name):
    product = ACCUMULATORS[name]
    a = fp8.quantize(cases.normal((M, K), seed=2), implementation="xla")
    b = fp8.quantize(cases.normal((N, K), seed=3), (128, 128), implementation="xla")
    x, y = (100 * cases.normal((M, N), seed=i, dtype=jnp.bfloat16) for i in (4, 5))
    got = jit(lambda x, y: product(a, b, x * y))(x, y)
    assert_same_bits(got, jit(lambda c: product(a, b, c))(x * y))
