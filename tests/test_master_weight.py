# SPDX-License-Identifier: Apache-2.0
"""MasterWeight: bit by bit the product and gradients of its master, quantized once."""

import functools
import re

import cases
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from test_dot import inputs, relative
from test_lowering import PRODUCT, QUANTIZER, custom_calls, lowered

import jax_fp8gemm as fp8

x0, w0, dy0 = inputs((3, 40, 256), (256, 200))
SIZES = jnp.asarray([20, 0, 15])
NK = (((2,), (1,)), ((), ()))

xla = {"implementation": "xla"}
# Function of the weight, the weight, and what its result is multiplied by.
USES = {
    "dot": (lambda w: fp8.dot(x0, w, **xla), w0, dy0),
    "dot_general": (lambda w: fp8.dot_general(x0, w, NK, **xla), w0.T, dy0),
    "ragged_dot": (
        lambda w: fp8.ragged_dot(x0[0], w, SIZES, **xla),
        jnp.stack([w0, -w0, 2 * w0]),
        dy0[0],
    ),
    "vmap of dot": (
        lambda w: jax.vmap(lambda x: fp8.dot(x, w, **xla))(x0),
        w0,
        dy0,
    ),
    "batch of matrices": (
        lambda w: fp8.frameworks.einsum("hmk,hkn->hmn", x0, w, **xla),
        jnp.stack([w0, -w0, 2 * w0]),
        dy0,
    ),
    "batch of matrices, out by in": (
        lambda w: fp8.frameworks.einsum("hmk,hnk->hmn", x0, w, **xla),
        jnp.stack([w0.T, -w0.T, 2 * w0.T]),
        dy0,
    ),
    "checkpoint": (jax.checkpoint(lambda w: fp8.dot(x0, w, **xla)), w0, dy0),
}


def quantized(w):
    return fp8.MasterWeight.quantize(w, **xla)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", USES)
def test_bits_are_those_of_the_master(name, jit):
    f, w, dy = USES[name]

    def loss(w):
        y = f(w)
        return (y * dy).sum(), y

    gradients = jax.grad(loss, has_aux=True)
    gradients = jax.jit(gradients) if jit else gradients
    want, want_y = gradients(w)
    got, got_y = gradients(quantized(w))
    np.testing.assert_array_equal(got_y, want_y)
    np.testing.assert_array_equal(got.master, want)
    assert got.gradient is None
    assert not np.asarray(got.quantized.values, np.float32).any()
    assert not np.asarray(got.quantized.scales).any()


ADDING = {
    "dot": fp8.dot,
    "dot_general": lambda x, w, **o: fp8.dot_general(x, w, (((1,), (1,)), ((), ())), **o),
    "ragged_dot": lambda x, w, **o: fp8.ragged_dot(x, w, jnp.asarray([20, 20]), **o),
}


def weight_for(name: str) -> jax.Array:
    w = {"dot": w0, "dot_general": w0.T, "ragged_dot": jnp.stack([w0, -w0])}[name]
    return w.astype(jnp.bfloat16)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", ADDING)
def test_the_kernel_adds_to_the_given_array_in_place(name):
    w = weight_for(name)

    def step(weight, total, x, dy):
        weight = weight.accumulate_into(total)
        return jax.grad(lambda w: (ADDING[name](x, w) * dy).sum())(weight).gradient

    text = lowered(step, (quantized(w), jnp.zeros(w.shape), x0[0], dy0[0]))
    product = next(line for line in text.splitlines() if f"custom_call @{PRODUCT}(" in line)
    assert "accumulate = true" in product
    assert "output_operand_alias<" in product
    assert "stablehlo.add" not in text


@pytest.mark.sampled(3)
@pytest.mark.parametrize("implementation", ["xla", "sim"])
@pytest.mark.parametrize("name", ADDING)
def test_gradients_add_up_in_the_given_array(name, implementation):
    options = {"implementation": implementation, "preferred_element_type": jnp.float32}
    w = weight_for(name)

    def loss(w, x, dy):
        return (ADDING[name](x, w, **options) * dy).sum()

    @jax.jit
    def total(weight, start):
        def add(total, batch):
            grads = jax.grad(loss)(weight.accumulate_into(total), *batch)
            return grads.gradient, jnp.abs(grads.master).max()

        return jax.lax.scan(add, start, (x0, dy0))

    start = cases.normal(w.shape, seed=5)
    got, masters = total(quantized(w), start)
    w = w.astype(jnp.float32)  # whose gradients are not rounded
    parts = [jax.grad(loss)(w, x, dy) for x, dy in zip(x0, dy0, strict=True)]
    assert not np.asarray(masters, np.float32).any()
    assert relative(got, sum(map(np.float64, parts), np.float64(start))) < 1e-6


@pytest.mark.usefixtures("extension")
def test_microbatches_do_not_quantize_the_weight():
    """In the program of a step for a GPU, beside one that is given the master alone."""

    def step(weight, xs, dys):
        def gradients(_, batch):
            x, dy = batch
            return None, jax.grad(lambda x, w: (fp8.dot(x, w) * dy).sum(), (0, 1))(x, weight)

        return jax.lax.scan(gradients, None, (xs, dys))[1]

    weights = quantized(w0), w0
    once, each = (custom_calls(lowered(step, (w, x0, dy0)), QUANTIZER) for w in weights)
    assert (once, each) == (3, 4)


def test_gradient_of_bits_is_not_silently_zero():
    def loss(w):
        return fp8.dot(x0, fp8.quantize(w.T, (128, 128)), **xla).sum()

    with pytest.warns(UserWarning, match="dot: w is a BlockScaled.* MasterWeight"):
        jax.grad(loss)(w0)
    experts = jnp.stack([w0, w0, w0]).swapaxes(1, 2)

    def ragged_loss(w):
        rhs = fp8.quantize(w, (128, 128))
        return fp8.ragged_dot(x0[0], rhs, SIZES, **xla).sum()

    with pytest.warns(UserWarning, match="ragged_dot: rhs is a BlockScaled"):
        jax.grad(ragged_loss)(experts)

    def batch_loss(w):
        rhs = fp8.quantize(w, (128, 128))
        return fp8.frameworks.einsum("hmk,hnk->hmn", x0, rhs, **xla).sum()

    with pytest.warns(UserWarning, match="dot_general: w is a BlockScaled"):
        jax.grad(batch_loss)(experts)
    # Whoever wants none says so; gradients of other operands warn of nothing.
    stopped = fp8.quantize(w0.T, (128, 128))
    jax.grad(lambda x: fp8.dot(x, stopped, **xla).sum())(x0)
    jax.grad(lambda w: fp8.dot(x0, jax.lax.stop_gradient(w), **xla).sum(), allow_int=True)(stopped)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", ["dot", "ragged_dot"])
def test_result_that_has_no_gradient(name, jit):
    """The gradient that arrives is a symbolic zero; a sum so far stays."""
    f, w, dy = USES[name]

    @jax.custom_vjp
    def second(y, x):
        return x

    second.defvjp(lambda y, x: (x, None), lambda _, dx: (None, dx))
    loss = jax.grad(lambda w, x: second(f(w), x).sum(), (0, 1), allow_int=True)
    loss = jax.jit(loss) if jit else loss
    assert not np.asarray(loss(w, dy)[0]).any()
    total = jnp.full(w.shape, 2.0)
    got, ones = loss(quantized(w).accumulate_into(total), dy)
    np.testing.assert_array_equal(got.gradient, total)
    assert (np.asarray(ones) == 1).all()


@pytest.mark.parametrize("name", ["dot", "ragged_dot"])
def test_a_sum_is_not_added_for_each_of_a_batch(name):
    w = USES[name][1]
    weight = quantized(w).accumulate_into(jnp.zeros(w.shape))

    def loss(weight):
        product = {
            "dot": lambda x: fp8.dot(x, weight, **xla),
            "ragged_dot": lambda x: fp8.ragged_dot(x, weight, SIZES, **xla),
        }[name]
        return jax.vmap(product)(x0).sum()

    loss(weight)  # nothing is added forward
    with pytest.raises(ValueError, match=f"{name}: gradient of a MasterWeight must be batched"):
        jax.grad(loss)(weight)


def test_format_is_that_of_the_recipe():
    with fp8.use_recipe(fp8.Recipe(scale_format="pow2")):
        np.testing.assert_array_equal(fp8.dot(x0, quantized(w0), **xla), fp8.dot(x0, w0, **xla))
    other = fp8.MasterWeight.quantize(w0, recipe=fp8.Recipe(scale_format="pow2"), **xla)
    assert (other.quantized.scales != quantized(w0).quantized.scales).any()


def test_export():
    f = jax.jit(lambda x, w: fp8.dot(x, w, **xla))
    exported = jax.export.export(f)(x0, quantized(w0))
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(again.call(x0, quantized(w0)), f(x0, w0))


@pytest.mark.parametrize(
    ("w", "axis", "message"),
    [
        (w0, 2, "axis must be an int from -2 to 1, got 2"),
        (w0[0], 0, r"w must have shape \(..., R, K\), got \(200,\)"),
    ],
)
def test_gathers_of_what_is_no_part(w, axis, message):
    with pytest.raises(ValueError, match=message):
        fp8.MasterWeight.all_gather(w, "d", axis=axis)


def test_passes_through_jax_as_a_tree():
    weight = quantized(w0)
    assert (weight.shape, weight.ndim, weight.dtype) == (w0.shape, 2, w0.dtype)
    again = jax.tree.map(lambda leaf: leaf, weight)
    assert isinstance(again, fp8.MasterWeight)
    stacked = jax.vmap(quantized)(jnp.stack([w0, w0]))
    y = jax.lax.scan(lambda c, w: (c, fp8.dot(x0, w, **xla)), 0, stacked)[1]
    np.testing.assert_array_equal(y[1], fp8.dot(x0, w0, **xla))


def with_scales(change):
    """Returns a quantized weight whose scales a `jax.tree.map` may have made."""
    quantized_only = quantized(w0).quantized
    leaves = (quantized_only.values, change(quantized_only.scales))
    return fp8.BlockScaled.tree_unflatten((128, 128), leaves)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda w: fp8.MasterWeight(w, fp8.quantize(w)),
            ValueError,
            r"w\.quantized must have block \(128, 128\), got \(1, 128\)",
        ),
        (
            lambda w: fp8.MasterWeight(w, fp8.quantize(w.T, (128, 128))),
            ValueError,
            r"w\.quantized must have the shape of the master = \(256, 200\), got \(200, 256\)",
        ),
        (lambda w: fp8.MasterWeight(w, w), TypeError, r"w\.quantized must be a BlockScaled"),
        (
            lambda w: fp8.MasterWeight(w, with_scales(lambda scales: scales[:1])),
            ValueError,
            r"w\.quantized scales must have shape \(2, 2\) for .*, got \(1, 2\)",
        ),
        (
            lambda w: fp8.MasterWeight(w, with_scales(lambda scales: scales.astype(jnp.bfloat16))),
            TypeError,
            r"w\.quantized scales must have dtype float32, got bfloat16",
        ),
        (
            lambda w: quantized(w).accumulate_into(jnp.zeros((200, 256))),
            ValueError,
            r"w\.gradient must have the shape of the master",
        ),
        (
            lambda w: quantized(w).accumulate_into(jnp.zeros(w.shape, jnp.bfloat16)),
            TypeError,
            r"w\.gradient must have dtype float32, got bfloat16",
        ),
    ],
)
def test_parts_that_do_not_fit(make, error, message):
    with pytest.raises(error, match=f"dot: {message}"):
        fp8.dot(x0, make(w0))


@pytest.mark.parametrize(
    ("shape", "subscripts"),
    [
        ((256, 2, 100), "bmk,kxy->bmxy"),  # two of N
        ((2, 128, 200), "bmhk,hkn->bmn"),  # two of K
        ((256, 3, 200), "bmk,kbn->bmn"),  # no matrix behind another
    ],
)
def test_dot_general_of_what_blocks_are_not_of(shape, subscripts):
    x = x0.reshape(3, 40, 2, 128) if "hk" in subscripts else x0
    with pytest.raises(ValueError, match=r"rhs must be \(\*batch, K, N\) or \(\*batch, N, K\)"):
        fp8.frameworks.einsum(subscripts, x, quantized(jnp.ones(shape)), **xla)


def test_sums_of_a_batch_of_matrices():
    w, total = jnp.stack([w0, -w0, 2 * w0]), cases.normal((3, *w0.shape), seed=5)

    def gradient(weight):
        product = functools.partial(fp8.frameworks.einsum, "hmk,hkn->hmn", x0, **xla)
        return jax.grad(lambda w: (product(w) * dy0).sum())(weight)

    got = gradient(quantized(w).accumulate_into(total)).gradient
    assert relative(got, np.float64(gradient(w)) + np.float64(total)) < 1e-6


@pytest.mark.usefixtures("extension")
def test_weight_of_out_by_in_is_transposed_as_bits():
    """No transpose in floating point, of the weight or of its gradient, in a step for a GPU."""

    def transposed(f, *arguments):
        text = lowered(f, arguments)
        return re.findall(r"stablehlo.transpose .* -> tensor<(?:200x256|256x200)x(\w+)>", text)

    f = functools.partial(fp8.dot_general, dimension_numbers=NK)
    step = jax.grad(lambda x, w: (f(x, w) * dy0).sum(), (0, 1))
    assert transposed(step, x0, w0.T) == ["ui8"]
    assert "f32" in transposed(jax.grad(lambda w: (fp8.dot(x0, w.T) * dy0).sum()), w0.T)
