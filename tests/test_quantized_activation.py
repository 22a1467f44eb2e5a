# SPDX-License-Identifier: Apache-2.0
"""QuantizedActivation: bits of dot and ragged_dot, gradients to the array, and no reading of it."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_fp8gemm as fp8
from jax_fp8gemm import QuantizedActivation

T, K, N, G = 40, 256, 136, 3
x = cases.normal((T, K), seed=0, dtype=jnp.bfloat16)
w = cases.normal((K, N), seed=1)
experts = cases.normal((G, K, N), seed=2)
sizes = jnp.asarray([17, 0, 20], jnp.int32)
dy = cases.normal((T, N), seed=3)
PRODUCTS = {
    "dot": (lambda x, w: fp8.dot(x, w), w),
    "dot of a batch": (lambda x, w: fp8.dot(jax.tree.map(lambda a: a[None], x), w)[0], w),
    "ragged_dot": (lambda x, w: fp8.ragged_dot(x, w, sizes), experts),
    "ragged_dot from a group on": (
        lambda x, w: fp8.ragged_dot(x, w, sizes, group_offset=jnp.int32(1)),
        experts[1:],
    ),
}


def same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def of_array(product, array, quantized):
    """The product as a function of the array that gradients go to, and of the weight."""
    return lambda array, w: product(QuantizedActivation(array, quantized), w)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", PRODUCTS)
def test_bits_are_those_of_the_array(name):
    product, weight = PRODUCTS[name]
    y, pull = jax.vjp(product, x, weight)
    q = QuantizedActivation.quantize(x)
    assert (q.shape, q.ndim, q.dtype) == (x.shape, x.ndim, x.dtype)
    got, pull_again = jax.vjp(of_array(product, x, q.quantized), x, weight)
    same_bits(got, y)
    same_bits(pull_again(dy.astype(y.dtype)), pull(dy.astype(y.dtype)))


def test_a_recipe_says_how():
    recipe = fp8.Recipe(scale_format="float32")
    got = QuantizedActivation.quantize(x, recipe=recipe).quantized
    same_bits(got, fp8.quantize(x))
    with fp8.use_recipe(recipe):
        same_bits(QuantizedActivation.quantize(x).quantized, fp8.quantize(x))


def test_the_array_is_not_read():
    """Neither pass looks at it: with NaN in it nothing changes."""
    q = QuantizedActivation.quantize(x)

    def f(array, w):
        return (fp8.dot(QuantizedActivation(array, q.quantized), w) * dy).sum()

    same_bits(jax.grad(f, (0, 1))(jnp.full_like(x, jnp.nan), w), jax.grad(f, (0, 1))(x, w))


def test_gradients_of_several_products_add_up():
    def loss(x, w, v):
        q = QuantizedActivation.quantize(x)
        return (fp8.dot(q, w) * dy).sum() + (fp8.dot(q, v) * dy).sum()

    v = cases.normal((K, N), seed=4)
    got = jax.grad(loss)(x, w, v)
    one, other = (jax.grad(lambda x, w: (fp8.dot(x, w) * dy).sum())(x, each) for each in (w, v))
    same_bits(got, one + other)


@pytest.mark.parametrize("transform", ["jit", "vmap", "scan", "checkpoint"])
def test_transformations(transform):
    q = QuantizedActivation.quantize(jnp.stack([x, 2 * x]))
    f = lambda q: fp8.dot(q, w)  # noqa: E731
    want = fp8.dot(q.array, w)
    if transform == "scan":
        _, got = jax.lax.scan(lambda carry, q: (carry, f(q)), None, q)
        want = jnp.stack([fp8.dot(each, w) for each in q.array])  # sums of one shape
    else:
        wrap = {"jit": jax.jit, "vmap": jax.vmap, "checkpoint": jax.checkpoint}[transform]
        got = wrap(f)(q)
    same_bits(got, want)


q = QuantizedActivation.quantize(x)
ERRORS = [
    (q.quantized, TypeError, "x is a BlockScaled, which has no gradient; give a Quantized"),
    (QuantizedActivation([1.0], q.quantized), TypeError, "x.array must be an array"),
    (QuantizedActivation(x.astype(jnp.int32), q.quantized), TypeError, "x.array must have dtype"),
    (QuantizedActivation(x, x), TypeError, "x.quantized must be a BlockScaled, got"),
    (
        QuantizedActivation(x, fp8.quantize(x, (128, 128))),
        ValueError,
        r"x.quantized must have block",
    ),
    (
        QuantizedActivation(x, fp8.quantize(x, dtype=jnp.float8_e5m2)),
        TypeError,
        "x.quantized's dtype must be one of float8_e4m3fn, got",
    ),
    (
        QuantizedActivation(x[:8], q.quantized),
        ValueError,
        r"x.quantized must have the shape of the array = \(8, 256\), got \(40, 256\)",
    ),
]


@pytest.mark.parametrize(("operand", "error", "message"), ERRORS, ids=[e[2] for e in ERRORS])
def test_errors(operand, error, message):
    with pytest.raises(error, match=f"^dot: {message}"):
        fp8.dot(operand, w)


def test_quantize_checks_its_array():
    with pytest.raises(TypeError, match="^QuantizedActivation: x must have dtype"):
        QuantizedActivation.quantize(x.astype(jnp.int32))


@pytest.mark.parametrize(
    ("axis", "message"),
    [(2, "axis must be an int from -2 to 1, got 2"), (-1, "axis must not be the last, got 1")],
)
def test_gathers_of_what_is_no_row(axis, message):
    with pytest.raises(ValueError, match=f"^QuantizedActivation.all_gather: {message}"):
        QuantizedActivation.all_gather(x, "d", axis=axis)
