# SPDX-License-Identifier: Apache-2.0
"""ragged_dot: values and gradients against float32, group by group, under JAX's transformations.

The bounds are those of test_dot.py: 3.75% of the norm for a product of two operands in e4m3.
"""

import functools
import math

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

RMS_PRODUCT = math.sqrt(2 * 2**-6 * 0.75 / (2 * math.log(2)) / 12)
LIMIT = 1.1 * RMS_PRODUCT
T, K, N, G = 300, 256, 136, 4
SIZES = {
    "all rows": (100, 0, 150, 50),
    "rows left over": (100, 1, 0, 30),
    "one group": (0, 300, 0, 0),
    "no rows": (0, 0, 0, 0),
    "whole blocks": (128, 128, 0, 44),
}

ragged_dot = functools.partial(fp8.ragged_dot, implementation="xla")


def inputs(sizes=SIZES["all rows"]):
    """Returns tokens, weights, group sizes and a cotangent."""
    x, w = cases.normal((T, K), seed=0), cases.normal((G, K, N), seed=1) / math.sqrt(K)
    return x, w, jnp.asarray(sizes, jnp.int32), cases.normal((T, N), seed=2)


def value_and_gradients(product, x, w, sizes, dy):
    y, pull = jax.vjp(lambda x, w: product(x, w, sizes), x, w)
    return y, *pull(dy)


def exact(x, w, sizes, dy):
    """Returns result and gradients in float64, a group at a time."""
    x, w, dy = (np.asarray(t, np.float64) for t in (x, w, dy))
    y, dx, dw = np.zeros((T, N)), np.zeros((T, K)), np.zeros((G, K, N))
    start = 0
    for g, size in enumerate(np.asarray(sizes)):
        rows = slice(start, start + size)
        y[rows], dx[rows], dw[g] = x[rows] @ w[g], dy[rows] @ w[g].T, x[rows].T @ dy[rows]
        start += size
    return y, dx, dw


def relative(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    scale = np.linalg.norm(want)
    return np.linalg.norm(got - want) / scale if scale else np.abs(got).max(initial=0)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SIZES)
def test_value_and_gradients(implementation, name):
    arguments = inputs(SIZES[name])
    product = functools.partial(fp8.ragged_dot, implementation=implementation)
    got, want = value_and_gradients(product, *arguments), exact(*arguments)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert relative(a, b) <= LIMIT
    for g, size in enumerate(SIZES[name]):
        assert relative(got[2][g], want[2][g]) <= (1.3 * LIMIT if size < 10 else LIMIT)


def test_rows_that_do_not_count_change_nothing():
    x, w, sizes, dy = inputs(SIZES["rows left over"])
    used = sum(SIZES["rows left over"])
    want = value_and_gradients(ragged_dot, x, w, sizes, dy)
    got = value_and_gradients(
        ragged_dot, x.at[used:].set(jnp.nan), w, sizes, dy.at[used:].set(jnp.inf)
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert not np.asarray(got[0][used:]).any() and not np.asarray(got[1][used:]).any()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("x_dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_dtypes(x_dtype, preferred):
    x, w, sizes, dy = inputs()
    product = functools.partial(ragged_dot, preferred_element_type=preferred)
    x, w = x.astype(x_dtype), w.astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        wanted = jnp.dtype(preferred or jnp.promote_types(x_dtype, jnp.bfloat16))
    got = value_and_gradients(product, x, w, sizes, dy.astype(wanted))
    assert [t.dtype for t in got] == [wanted, x_dtype, jnp.bfloat16]
    want = exact(*(t.astype(jnp.float32) for t in (x, w)), sizes, dy)
    assert all(relative(a, b) <= LIMIT for a, b in zip(got, want, strict=True))


def test_quantized_weights():
    x, w, sizes, dy = inputs()
    quantized = fp8.quantize(w.swapaxes(1, 2), (128, 128))
    with pytest.warns(UserWarning, match="rhs is a BlockScaled, which has no gradient"):
        got = value_and_gradients(ragged_dot, x, quantized, sizes, dy)
    want = value_and_gradients(ragged_dot, x, w, sizes, dy)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    assert not np.asarray(got[2].values, np.float32).any()


x0, w0, sizes0, dy0 = inputs()
OTHER = (x0[::-1], jnp.asarray(SIZES["rows left over"], jnp.int32), dy0[::-1])
BATCH = [jnp.stack(pair) for pair in zip((x0, sizes0, dy0), OTHER, strict=True)]


def loss(x, w, sizes, dy):
    return (ragged_dot(x, w, sizes) * dy).sum()


def scanned(x, w, sizes, dy):
    def step(total, each):
        return total + loss(each[0], w, *each[1:]), None

    return jax.lax.scan(step, jnp.float32(0), (x, sizes, dy))[0]


def summed(x, w, sizes, dy):
    return sum(loss(x[i], w, sizes[i], dy[i]) for i in range(len(x)))


COMBINATIONS = {
    "vmap": lambda *a: jax.vmap(loss, (0, None, 0, 0))(*a).sum(),
    "scan": scanned,
    "scan of checkpoint": jax.checkpoint(scanned),
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_gradients_of_transformed_functions(name, jit):
    x, sizes, dy = BATCH
    gradients = jax.grad(COMBINATIONS[name], (0, 1))
    got = (jax.jit(gradients) if jit else gradients)(x, w0, sizes, dy)
    want = jax.grad(summed, (0, 1))(x, w0, sizes, dy)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4)


def test_gradients_of_each_example():
    x, sizes, dy = BATCH
    got = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (0, None, 0, 0)))(x, w0, sizes, dy)
    for i in range(len(x)):
        want = jax.grad(loss, (0, 1))(x[i], w0, sizes[i], dy[i])
        np.testing.assert_allclose(got[0][i], want[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(got[1][i], want[1], rtol=0, atol=1e-4)


def test_activations_that_examples_share_are_quantized_once():
    """However many rows each example has in groups; gradients are those of each."""
    _, sizes, dy = BATCH
    x = x0.at[int(sizes.sum(1).max()) :].set(jnp.nan)
    gradients = jax.vmap(jax.value_and_grad(loss, (0, 1)), (None, None, 0, 0))
    y, dx, dw = jax.tree.leaves(jax.jit(gradients)(x, w0, sizes, dy))
    for i in range(len(sizes)):
        want = jax.tree.leaves(jax.value_and_grad(loss, (0, 1))(x, w0, sizes[i], dy[i]))
        for got, each in zip((y[i], dx[i], dw[i]), want, strict=True):
            np.testing.assert_allclose(got, each, rtol=1e-5, atol=1e-4)


def test_sizes_do_not_retrace():
    traces = []

    @jax.jit
    def step(x, w, sizes, dy):
        traces.append(None)
        return jax.grad(loss, (0, 1))(x, w, sizes, dy)

    for sizes in SIZES.values():
        step(x0, w0, jnp.asarray(sizes, jnp.int32), dy0)
    assert len(traces) == 1


def test_residuals_are_the_bits_of_float8():
    _, pull = jax.vjp(lambda x, w: ragged_dot(x, w, sizes0), x0, w0)
    kept = [leaf for leaf in jax.tree.leaves(pull) if getattr(leaf, "size", 0) > 5000]
    assert {leaf.dtype.name for leaf in kept} == {"uint8"}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_group_offset(jit, shape):
    """Parts of the experts give parts of the result, which add up; gradients too."""
    x, w, sizes, dy = inputs(SIZES["rows left over"])
    want = value_and_gradients(ragged_dot, x, w, sizes, dy)

    def part(first):
        product = functools.partial(ragged_dot, group_offset=jnp.full(shape, first))
        step = lambda x, w, dy: value_and_gradients(product, x, w, sizes, dy)  # noqa: E731
        return (jax.jit(step) if jit else step)(x, w[first : first + 2], dy)

    parts = [part(0), part(2)]
    for i in range(2):  # the result, and the gradient of the activations
        np.testing.assert_array_equal(parts[0][i] + parts[1][i], want[i])
        assert not (np.asarray(parts[0][i]) * np.asarray(parts[1][i])).any()
    np.testing.assert_array_equal(np.concatenate([each[2] for each in parts]), want[2])


@pytest.mark.parametrize("spec", [P(None, None, None), P(None, "x", None), P(None, None, "x")])
def test_gradients_are_sharded_as_the_experts_are(spec):
    """Traced for devices that need not be there; test_sharding.py runs them."""
    mesh = AbstractMesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    w = jax.ShapeDtypeStruct(w0.shape, w0.dtype, sharding=NamedSharding(mesh, spec))
    with jax.sharding.use_abstract_mesh(mesh):
        loss = lambda x, w: ragged_dot(x, w, sizes0).sum()  # noqa: E731
        dx, dw = jax.eval_shape(jax.grad(loss, (0, 1)), x0, w)
    assert (dx.sharding.spec, dw.sharding.spec) == (P(None, None), spec)


ERRORS = [
    (lambda: fp8.ragged_dot(dy0[0], w0, sizes0), ValueError, "lhs must be a matrix"),
    (lambda: fp8.ragged_dot(x0, w0[0], sizes0), ValueError, "rhs must have shape"),
    (lambda: fp8.ragged_dot(x0, w0[0, 0], sizes0), ValueError, "rhs must have shape"),
    (lambda: fp8.ragged_dot(x0, w0.swapaxes(1, 2), sizes0), ValueError, "rhs must have shape"),
    (lambda: fp8.ragged_dot(x0, w0, sizes0[:2]), ValueError, "group_sizes must have shape"),
    (
        lambda: fp8.ragged_dot(x0, w0, dy0[0, :G]),
        TypeError,
        "group_sizes must have an integer dtype",
    ),
    (lambda: fp8.ragged_dot(x0, w0, sizes0, "highest"), ValueError, "precision"),
    (
        lambda: fp8.ragged_dot(x0, w0, sizes0, group_offset=sizes0[:2]),
        ValueError,
        r"group_offset must have shape \(\) or \(1,\), got \(2,\)",
    ),
    (
        lambda: fp8.ragged_dot(x0, w0, sizes0, group_offset=0.0),
        TypeError,
        "group_offset must be an array",
    ),
    (
        lambda: fp8.ragged_dot(x0, w0, sizes0[:3], group_offset=sizes0[0]),
        ValueError,
        "group_sizes must have at least the groups of rhs = 4, got 3",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS, ids=[e[2] for e in ERRORS])
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
