# SPDX-License-Identifier: Apache-2.0
"""What layers are made of, of any shape, against float64 or against the same in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_properties import DEPTHS, EXTENTS, FEWER, SEEDS, assert_within_roundings, normal

import jax_fp8gemm as fp8

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("extension")]
IMPLEMENTATIONS = ["xla", "sim"]
SMALL = st.integers(1, 4)


def same(got, want) -> None:
    """Checks that two trees have the same structure, dtypes and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))


def same_but_for_the_order_of_sums(got, want) -> None:
    """Checks bfloat16 results: a step of the last bit, and what cancels in float32."""
    want = np.float32(want)
    atol = 2.0**-16 * np.abs(want).max(initial=0)
    np.testing.assert_allclose(np.float32(got), want, rtol=2.0**-7, atol=atol)


def gradients(product, x, w, dy):
    def loss(x, w):
        return (product(x, w).astype(jnp.float32) * dy.astype(jnp.float32)).sum()

    return jax.jit(jax.grad(loss, (0, 1)))(x, w)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@FEWER
@given(m=EXTENTS, n=EXTENTS, k=EXTENTS, seed=SEEDS)
def test_gradients_of_dot_are_within_their_bounds(implementation, m, n, k, seed):
    x, w, dy = (
        normal(seed + i, 0, *shape).astype(jnp.float32)
        for i, shape in enumerate(((m, k), (k, n), (m, n)))
    )
    product = lambda x, w: fp8.dot(x, w, implementation=implementation)  # noqa: E731
    dx, dw = gradients(product, x, w, dy)
    assert_within_roundings(dx, dy, w.T)
    # Activations are scaled anew along tokens, by powers of two: rounded where they are smallest.
    assert_within_roundings(dw, x.T, dy, roundings=2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@FEWER
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=3), n=EXTENTS, k=DEPTHS, seed=SEEDS)
def test_gradients_of_ragged_dot_are_those_of_each_group(implementation, sizes, n, k, seed):
    tokens = sum(sizes)
    x, w, dy = (
        normal(seed + i, 0, *shape).astype(jnp.float32)
        for i, shape in enumerate(((tokens + 3, k), (len(sizes), k, n), (tokens + 3, n)))
    )
    group_sizes = jnp.asarray(sizes, jnp.int32)
    dx, dw = gradients(
        lambda x, w: fp8.ragged_dot(x, w, group_sizes, implementation=implementation), x, w, dy
    )
    assert not dx[tokens:].any()
    ends = np.cumsum([0, *sizes])
    for group, (first, last) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        rows = slice(first, last)
        assert_within_roundings(dx[rows], dy[rows], w[group].T)
        assert_within_roundings(dw[group], x[rows].T, dy[rows], roundings=2)


@FEWER
@given(
    batch=st.lists(SMALL, max_size=2),
    m=st.lists(SMALL, max_size=2),
    n=st.lists(SMALL, max_size=2),
    k=st.lists(st.integers(1, 12), min_size=1, max_size=2),
    data=st.data(),
    seed=SEEDS,
)
def test_dot_general_is_a_dot_of_each_batch(batch, m, n, k, data, seed):
    """With the dimensions of both operands in any order."""

    def operand(dims, seed):
        order = data.draw(st.permutations(range(len(dims))))
        canonical = normal(seed, 0, *dims)
        places = [order.index(i) for i in range(len(dims))]
        return canonical, canonical.transpose(order), places

    x, lhs, lhs_places = operand([*batch, *m, *k], seed)
    w, rhs, rhs_places = operand([*batch, *k, *n], seed + 1)
    b = len(batch)
    numbers = (
        (lhs_places[b + len(m) :], rhs_places[b : b + len(k)]),
        (lhs_places[:b], rhs_places[:b]),
    )
    got = fp8.dot_general(lhs, rhs, numbers, implementation="xla")
    # What is left of an operand comes in the order in which it has it.
    m_places, n_places = lhs_places[b : b + len(m)], rhs_places[b + len(k) :]
    left = [*range(b), *(b + np.argsort(np.argsort(m_places)).astype(int))]
    left += [*(b + len(m) + np.argsort(np.argsort(n_places)).astype(int))]
    got = got.transpose([int(axis) for axis in left])
    assert got.shape == (*batch, *m, *n)
    depth = int(np.prod(k))
    x = x.reshape(-1, int(np.prod(m)), depth)
    w = w.reshape(-1, depth, int(np.prod(n)))
    dot = jax.jit(lambda x, w: fp8.dot(x, w, implementation="xla"))
    want = [dot(*each) for each in zip(x, w, strict=True)]
    same_but_for_the_order_of_sums(got.reshape(-1), jnp.stack(want).reshape(-1))


@FEWER
@given(tokens=EXTENTS, heads=SMALL, n=EXTENTS, k=EXTENTS, seed=SEEDS)
def test_einsum_is_a_dot_of_each_head(tokens, heads, n, k, seed):
    x, w = normal(seed, 0, tokens, heads, k), normal(seed + 1, 0, heads, n, k)
    got = fp8.frameworks.einsum("mhk,hnk->mhn", x, w, implementation="xla")
    dot = jax.jit(lambda x, w: fp8.dot(x, w.T, implementation="xla"))
    for head in range(heads):
        want = dot(x[:, head], w[head])
        same_but_for_the_order_of_sums(got[:, head], want)


ACTIVATIONS = {
    "swiglu": lambda gate, up: fp8.swiglu(gate, up),
    "swiglu of both": lambda gate, up: fp8.swiglu(jnp.concatenate([gate, up], -1)),
    "geglu": lambda gate, up: fp8.geglu(gate, up),
    "gelu": lambda gate, _: fp8.gelu(gate),
    "rms_norm": lambda x, weight: fp8.rms_norm(x, weight[0]),
}


def in_float64(name: str, gate, up) -> np.ndarray:
    x, up = (np.asarray(each, np.float64) for each in (gate, up))
    if name.startswith("swiglu"):
        return x / (1 + np.exp(-x)) * up
    if name == "rms_norm":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * up[0]
    gelu = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return gelu * up if name == "geglu" else gelu


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ACTIVATIONS)
@FEWER
@given(m=EXTENTS, k=DEPTHS, seed=SEEDS)
def test_activations_are_within_a_rounding(name, implementation, m, k, seed):
    gate, up = (normal(seed + i, 0, m, k).astype(jnp.float32) for i in range(2))
    q = fp8.quantize(ACTIVATIONS[name](gate, up), implementation=implementation)
    exact = in_float64(name, gate, up)
    scales = np.asarray(q.scales, np.float64).repeat(128, 1)[:, :k]
    got = np.asarray(q.values.astype(jnp.float32), np.float64) * scales
    # Half a step of e4m3, and the approximations of the kernels, of the terms that are added.
    bound = np.maximum(np.abs(exact) * 2.0**-4, scales * 2.0**-10) * 1.001
    terms = np.abs(np.asarray(gate, np.float64)) * np.maximum(1, np.abs(np.asarray(up)))
    assert (np.abs(got - exact) <= bound + 2.0**-18 * terms).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@FEWER
@given(m=EXTENTS, n=EXTENTS, k=EXTENTS, seed=SEEDS)
def test_what_is_quantized_before_gives_the_same_bits(implementation, m, n, k, seed):
    x, w, dy = (normal(seed + i, 0, *shape) for i, shape in enumerate(((m, k), (k, n), (m, n))))
    options = {"implementation": implementation}

    def before(x, w):
        q = fp8.QuantizedActivation.quantize(x, **options)
        return fp8.dot(q, fp8.MasterWeight.quantize(w, **options), **options)

    product = lambda x, w: fp8.dot(x, w, **options)  # noqa: E731
    same(jax.jit(before)(x, w), jax.jit(product)(x, w))
    same(gradients(before, x, w, dy), gradients(product, x, w, dy))


@FEWER
@given(
    blocks=st.lists(SMALL, min_size=1, max_size=3),
    last=EXTENTS,
    k=DEPTHS,
    copies=SMALL,
    seed=SEEDS,
)
def test_arrays_of_blocks_are_as_arrays(blocks, last, k, copies, seed):
    """Concatenated along whole blocks, stacked, indexed, sliced and transposed."""
    sizes = [*(128 * count for count in blocks), last]
    parts = [
        fp8.quantize(normal(seed + i, 0, rows, k), (128, 128), implementation="xla")
        for i, rows in enumerate(sizes)
    ]
    whole = fp8.concatenate(parts)
    dense = np.concatenate([part.dequantize() for part in parts])
    np.testing.assert_array_equal(whole.dequantize(), dense)
    ends = np.cumsum([0, *sizes])
    for part, first, end in zip(parts, ends[:-1], ends[1:], strict=True):
        same(whole[int(first) : int(end)], part)
    stack = fp8.stack([whole] * copies)
    np.testing.assert_array_equal(stack.dequantize(), np.stack([dense] * copies))
    same(stack[copies - 1], whole)
    np.testing.assert_array_equal(whole.T.dequantize(), dense.T)
    same(whole.T.T, whole)
    np.testing.assert_array_equal((whole * 2).dequantize(), dense * 2)
