# SPDX-License-Identifier: Apache-2.0
"""dot and dot_general: values and gradients against float32, under JAX's transformations.

Bounds, from e4m3's rounding. Rounding to nearest with 3 mantissa bits changes a normal number by at
most 2^-4 of itself, and one below 2^-6 of its scale by at most 2^-10 of that. So a product of r
roundings is within (1 + 2^-4)^r - 1 of the sum of its magnitudes, plus what subnormals lose. On
average it is far less: the error is uniform over a unit in the last place u, and with x in [1, 2)
spread evenly in logarithm, E[(u / x)^2 / 12] = 2^-6 * (3 / 4) / (2 ln 2) / 12, whose root is 2.65%.
Independent roundings add in squares: 3.75% of the norm for a product of two rounded operands.
"""

import functools
import math

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_fp8gemm as fp8
from jax_fp8gemm._src.training import trained_product

RMS_ROUNDING = math.sqrt(2**-6 * 0.75 / (2 * math.log(2)) / 12)
MARGIN = 1.1  # what finite samples and numbers of another distribution add
WORST_ROUNDING = 2.0**-4
# Half a subnormal step over amax = 448 scales; twice that where the scale is rounded up.
SUBNORMAL = 2.0**-9 / 448

B, T, K, N = 3, 40, 256, 200
SHAPES = [
    ((T, K), (K, N)),
    ((B, T, K), (K, N)),
    ((K,), (K, N)),
    ((2, 2, 130, 131), (131, 77)),  # partial blocks everywhere
    ((1, 1), (1, 1)),
]

dot = functools.partial(fp8.dot, implementation="xla")


def relative(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def within_rms(got, want, roundings=2):
    return relative(got, want) <= MARGIN * RMS_ROUNDING * math.sqrt(roundings)


def assert_within_worst_case(got, lhs, rhs, roundings=2):
    """Compares `lhs @ rhs` of float64 matrices with what FP8 made of it, element by element."""
    lhs, rhs = np.asarray(lhs, np.float64), np.asarray(rhs, np.float64)
    magnitude = np.abs(lhs) @ np.abs(rhs)
    lost = SUBNORMAL * np.abs(lhs).max() * np.abs(rhs).sum(0, keepdims=True)
    lost = lost + SUBNORMAL * np.abs(rhs).max() * np.abs(lhs).sum(1, keepdims=True)
    bound = ((1 + WORST_ROUNDING) ** roundings - 1) * magnitude + 2 * roundings * lost
    assert (np.abs(np.asarray(got, np.float64) - lhs @ rhs) <= bound).all()


def inputs(x_shape=(B, T, K), w_shape=(K, N), dtype=jnp.float32):
    """Returns activations, a weight and a cotangent."""
    dy_shape = (*x_shape[:-1], w_shape[1])
    x, w, dy = (cases.normal(s, seed=i) for i, s in enumerate((x_shape, w_shape, dy_shape)))
    return x.astype(dtype), (w / math.sqrt(w_shape[0])).astype(dtype), dy.astype(dtype)


def value_and_gradients(product, x, w, dy):
    y, pull = jax.vjp(product, x, w)
    return y, *pull(dy)


def matrix(t):
    return np.asarray(t, np.float64).reshape(-1, t.shape[-1])


@pytest.mark.sampled(11)
@pytest.mark.parametrize(("x_shape", "w_shape"), SHAPES, ids=str)
def test_value_and_gradients(x_shape, w_shape):
    x, w, dy = inputs(x_shape, w_shape)
    y, dx, dw = value_and_gradients(dot, x, w, dy)
    assert (y.shape, dx.shape, dw.shape) == (dy.shape, x.shape, w.shape)
    assert_within_worst_case(matrix(y), matrix(x), w)
    assert_within_worst_case(matrix(dx), matrix(dy), np.asarray(w).T)
    assert_within_worst_case(dw, matrix(x).T, matrix(dy), roundings=3)
    if x.size > 1000:
        want = value_and_gradients(jnp.matmul, x, w, dy)
        assert all(map(within_rms, (y, dx, dw), want))


def test_implementations_agree(implementation):
    """Kernels and plain JAX differ by accumulation alone."""
    x, w, dy = inputs()
    got = value_and_gradients(functools.partial(fp8.dot, implementation=implementation), x, w, dy)
    want = value_and_gradients(dot, x, w, dy)
    limit = 1e-3 if implementation == "cuda" else 1e-6
    assert all(relative(a, b) <= limit for a, b in zip(got, want, strict=True))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("x_dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("w_dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("preferred", [None, jnp.bfloat16, jnp.float32])
def test_dtypes(x_dtype, w_dtype, preferred):
    x, w, dy = inputs()
    x, w = x.astype(x_dtype), w.astype(w_dtype)
    product = functools.partial(dot, preferred_element_type=preferred)
    with jax.numpy_dtype_promotion("standard"):
        wanted = jnp.dtype(preferred or jnp.promote_types(x_dtype, w_dtype))
    y, dx, dw = value_and_gradients(product, x, w, dy.astype(wanted))
    assert (y.dtype, dx.dtype, dw.dtype) == (wanted, x_dtype, w_dtype)
    want = value_and_gradients(jnp.matmul, *(t.astype(jnp.float32) for t in (x, w, dy)))
    # The operands' and the result's own rounding to bfloat16 is below 1% of the FP8 rounding.
    assert all(map(within_rms, (y, dx, dw), want))


def test_rounding_once_and_then_again_along_tokens_costs_nothing():
    """Scales of powers of two: the weight gradient is off by two roundings and not by three."""
    x, w, dy = inputs((512, 384), (384, 256))
    dw = value_and_gradients(dot, x, w, dy)[2]
    assert within_rms(dw, jnp.matmul(x.T, dy), roundings=2)
    twice = fp8.quantize_transposed(fp8.quantize(x).dequantize()).dequantize()
    assert relative(twice, x.T) > 1.2 * relative(fp8.quantize(x.T).dequantize(), x.T)


def test_quantized_weight():
    x, w, dy = inputs()
    quantized = fp8.quantize(w.T, (128, 128))
    with pytest.warns(UserWarning, match="w is a BlockScaled, which has no gradient"):
        y, dx, dw = value_and_gradients(dot, x, quantized, dy)
    want = value_and_gradients(dot, x, w, dy)
    np.testing.assert_array_equal(y, want[0])
    np.testing.assert_array_equal(dx, want[1])
    assert not np.asarray(dw.values, np.float32).any()
    assert not np.asarray(dw.scales).any()


# ---- Transformations: every one must give what its plain meaning gives ---------------------------

x0, w0, dy0 = inputs()


def loss(x, w, dy):
    return (dot(x, w) * dy).sum()


def scanned(x, w, dy):
    def step(total, each):
        return total + loss(each[0], w, each[1]), None

    return jax.lax.scan(step, jnp.float32(0), (x, dy))[0]


COMBINATIONS = {
    "jit": jax.jit(loss),
    "vmap": lambda *a: jax.vmap(loss, (0, None, 0))(*a).sum(),
    "vmap of jit": lambda *a: jax.vmap(jax.jit(loss), (0, None, 0))(*a).sum(),
    "vmap over tokens": lambda *a: jax.vmap(loss, (1, None, 1))(*a).sum(),
    "vmap of vmap": lambda *a: jax.vmap(jax.vmap(loss, (0, None, 0)), (0, None, 0))(*a).sum(),
    "scan": scanned,
    "checkpoint": jax.checkpoint(loss),
    "scan of checkpoint": lambda *a: jax.jit(jax.checkpoint(scanned))(*a),
}


@pytest.mark.sampled(9)
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_gradients_of_transformed_functions(name, jit):
    """A weight gradient's blocks depend on how tokens come: only its roundings are bounded."""
    gradients = jax.grad(COMBINATIONS[name], (0, 1))
    dx, dw = (jax.jit(gradients) if jit else gradients)(x0, w0, dy0)
    np.testing.assert_allclose(dx, value_and_gradients(dot, x0, w0, dy0)[1], rtol=0, atol=1e-5)
    want = value_and_gradients(jnp.matmul, x0, w0, dy0)[2]
    if name == "vmap of vmap" or name == "vmap over tokens":
        assert relative(dw, want) <= 2 * MARGIN * RMS_ROUNDING  # one token each: dy has no block
    else:
        assert within_rms(dw, want)


@pytest.mark.parametrize("jit", [False, True])
def test_gradients_of_each_example(jit):
    gradients = jax.vmap(jax.grad(loss, (0, 1)), (0, None, 0))
    dx, dw = (jax.jit(gradients) if jit else gradients)(x0, w0, dy0)
    for i in range(B):
        want = jax.grad(loss, (0, 1))(x0[i], w0, dy0[i])
        np.testing.assert_allclose(dx[i], want[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(dw[i], want[1], rtol=0, atol=1e-4)


def test_vmap_over_weights():
    weights = jnp.stack([w0, 2 * w0])
    f = jax.vmap(loss, (None, 0, None))
    dx, dw = jax.grad(lambda x, w: f(x, w, dy0).sum(), (0, 1))(x0, weights)
    want = [jax.grad(loss, (0, 1))(x0, w, dy0) for w in weights]
    np.testing.assert_allclose(dx, want[0][0] + want[1][0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(dw, jnp.stack([want[0][1], want[1][1]]), rtol=0, atol=1e-4)


def test_traced_and_compiled_once():
    traces = []

    @jax.jit
    def step(x, w, dy):
        traces.append(None)
        return jax.grad(loss, (0, 1))(x, w, dy)

    for scale in (1.0, 2.0, 3.0):
        step(x0 * scale, w0, dy0)
    assert len(traces) == 1 and step._cache_size() == 1


def test_eager_calls_share_one_program():
    dot(x0, w0)
    before = trained_product._apply._cache_size()
    dot(x0 + 1, 2 * w0)
    assert trained_product._apply._cache_size() == before


PRODUCTS = {
    "dot": dot,
    "swiglu": lambda x, w: dot(fp8.swiglu(x, x), w),
    "ragged_dot": lambda x, w: fp8.ragged_dot(
        x.reshape(-1, K), w[None], jnp.array([B * T]), implementation="xla"
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_gradients_do_not_depend_on_which_ones_were_asked_for_before(name):
    product = PRODUCTS[name]

    def gradients(*wanted):
        function = jax.jit(lambda x, w: product(x, w).sum())  # another one, of the same product
        return jax.grad(function, wanted)(x0, w0)

    dx, dw = gradients(0, 1)
    np.testing.assert_array_equal(gradients(0)[0], dx)
    np.testing.assert_array_equal(gradients(1)[0], dw)
    np.testing.assert_array_equal(gradients(0)[0], dx)


def test_residuals_are_the_bits_of_float8():
    _, pull = jax.vjp(dot, x0.astype(jnp.bfloat16), w0.astype(jnp.bfloat16))
    kept = [leaf for leaf in jax.tree.leaves(pull) if hasattr(leaf, "nbytes")]
    assert {leaf.dtype.name for leaf in kept if leaf.size > 1000} == {"uint8"}
    assert sum(leaf.nbytes for leaf in kept) <= 1.05 * (x0.size + w0.size)


@pytest.mark.parametrize(
    "activation", [lambda x: fp8.swiglu(x, x), lambda x: fp8.rms_norm(x, jnp.ones(K, x.dtype))]
)
def test_factors_are_kept_only_for_gradients_that_are_wanted(activation):
    x, w = x0.astype(jnp.bfloat16), w0.astype(jnp.bfloat16)

    def kept(function, *operands):
        _, pull = jax.vjp(function, *operands)
        return sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(pull))

    assert kept(lambda w: dot(activation(x), w), w) <= 1.05 * (x.size + w.size)
    assert kept(lambda x: dot(activation(x), w), x) > 2 * x.size + w.size


def test_checkpoint_policy_keeps_bits_and_drops_the_rest():
    names = jax.checkpoint_policies.save_only_these_names("fp8_activation", "fp8_weight")

    def layer(x, w):
        return dot(jnp.tanh(x), w).sum()

    _, pull = jax.vjp(jax.checkpoint(layer, policy=names), x0, w0)
    large = [leaf for leaf in jax.tree.leaves(pull) if getattr(leaf, "size", 0) > 1000]
    assert sorted(leaf.dtype.name for leaf in large).count("uint8") == 2
    assert sum(leaf.dtype != jnp.uint8 for leaf in large) <= 2  # x and w themselves


@pytest.mark.parametrize("transform", [jax.jacfwd, lambda f: lambda x: jax.jvp(f, (x,), (x,))])
def test_forward_mode_raises(transform):
    x = jnp.ones((1, 8))  # jacfwd makes a square of its size
    with pytest.raises(TypeError, match="forward-mode"):
        transform(lambda x: dot(x, w0[:8]))(x)


def test_second_derivatives_raise():
    with pytest.raises(TypeError, match="not differentiable"):
        jax.grad(lambda x: jax.grad(lambda x: dot(x, w0).sum())(x).sum())(x0)


@pytest.mark.parametrize("shape", [(0, K), (3, 0, K)])
def test_gradients_of_no_tokens(shape):
    loss = lambda x, w: dot(x, w).sum()  # noqa: E731
    dx, dw = jax.grad(loss, (0, 1))(jnp.zeros(shape), w0)
    assert dx.shape == shape and dw.shape == w0.shape and not dw.any()


# ---- dot_general ---------------------------------------------------------------------------------

DOT_GENERAL = [
    ((4, 32, 256), (256, 128), (((2,), (0,)), ((), ()))),
    ((4, 32, 2, 128), (2, 128, 3, 64), (((2, 3), (0, 1)), ((), ()))),
    ((2, 4, 32, 128), (2, 4, 48, 128), (((3,), (3,)), ((0, 1), (0, 1)))),
    ((256, 24), (3, 256, 5), (((0,), (1,)), ((), ()))),
    ((300,), (300,), (((0,), (0,)), ((), ()))),
    ((3,), (4,), (((), ()), ((), ()))),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("lhs_shape", "rhs_shape", "numbers"), DOT_GENERAL, ids=str)
def test_dot_general(lhs_shape, rhs_shape, numbers):
    lhs, rhs = cases.normal(lhs_shape, seed=3), cases.normal(rhs_shape, seed=4)
    ours = functools.partial(fp8.dot_general, dimension_numbers=numbers, implementation="xla")
    theirs = functools.partial(jax.lax.dot_general, dimension_numbers=numbers)
    dy = cases.normal(jax.eval_shape(theirs, lhs, rhs).shape, seed=5)
    got = value_and_gradients(ours, lhs, rhs, dy)
    want = value_and_gradients(theirs, lhs, rhs, dy)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert relative(a, b) <= (1 if b.size > 100 else 2) * MARGIN * RMS_ROUNDING * 2**0.5


def test_dot_general_is_what_a_dense_layer_calls():
    got = fp8.dot_general(
        x0, w0, (((2,), (0,)), ((), ())), precision=None, preferred_element_type=jnp.bfloat16
    )
    assert got.dtype == jnp.bfloat16 and got.shape == (B, T, N)


@pytest.mark.parametrize("implementation", ["xla", "sim"])
def test_dot_general_of_quantized_matrices_of_a_batch(implementation, request):
    """The absorbed projections of latent attention: a matrix of each head."""
    if implementation == "sim":
        request.getfixturevalue("simulator_library")
    heads = fp8.quantize(cases.normal((3, 140, 160), seed=6), (128, 128))
    x = cases.normal((10, 3, 160), seed=7)
    ours = functools.partial(fp8.dot_general, implementation=implementation)
    got = ours(x, heads, (((2,), (2,)), ((1,), (0,))))
    assert got.shape == (3, 10, 140)
    for head in range(3):
        want = fp8.dot(x[:, head], heads[head], implementation=implementation)
        np.testing.assert_array_equal(got[head], want)


# ---- Errors --------------------------------------------------------------------------------------

INTS = jnp.zeros((T, K), jnp.int32)
DENSE = (((2,), (0,)), ((), ()))
HEADS = fp8.quantize(jnp.ones((N, T, K)), (128, 128))
ERRORS = [
    (lambda: fp8.dot([1.0], w0), TypeError, "x must be an array"),
    (lambda: fp8.dot(INTS, w0), TypeError, "x must have dtype"),
    (lambda: fp8.dot(x0, w0.astype(jnp.int32)), TypeError, "w must have dtype"),
    (lambda: fp8.dot(x0, w0, preferred_element_type=jnp.int8), TypeError, "preferred_element_type"),
    (lambda: fp8.dot(x0, w0, implementation=1), TypeError, "implementation"),
    (lambda: fp8.dot(x0, w0, implementation="tpu"), ValueError, "implementation"),
    (lambda: fp8.dot(x0[0, 0, 0], w0), ValueError, r"x must have shape \(..., K\)"),
    (lambda: fp8.dot(x0, w0.T), ValueError, r"w must have shape \(K, N\)"),
    (lambda: fp8.dot(x0, w0[None]), ValueError, "w must be a matrix"),
    (lambda: fp8.dot(x0, fp8.quantize(w0.T)), ValueError, "w must have block"),
    (lambda: fp8.dot(x0, fp8.quantize(w0, (128, 128))), ValueError, r"w must have shape \(N, K\)"),
    (lambda: fp8.dot_general(INTS, w0, DENSE), TypeError, "lhs must have dtype"),
    (
        lambda: fp8.dot_general(x0, fp8.quantize(w0, (128, 128)), DENSE),
        ValueError,
        r"rhs must be \(\*batch, N, K\)",
    ),
    (
        lambda: fp8.dot_general(x0, HEADS, (((1, 2), (1, 2)), ((), ()))),
        ValueError,
        "got shape .* with dimensions .* contracted",
    ),
    (lambda: fp8.dot_general(x0, w0, (2, 0)), ValueError, "dimension_numbers"),
    (lambda: fp8.dot_general(x0, w0, (((3,), (0,)), ((), ()))), ValueError, "dimensions of lhs"),
    (lambda: fp8.dot_general(x0, w0, (((2, 2), (0, 0)), ((), ()))), ValueError, "distinct"),
    (lambda: fp8.dot_general(x0, w0, (((2,), (1,)), ((), ()))), ValueError, "contracting"),
    (lambda: fp8.dot_general(x0, w0, (((), ()), ((0,), (0,)))), ValueError, "batch"),
    (lambda: fp8.dot_general(x0, w0, DENSE, "highest"), ValueError, "precision"),
    (
        lambda: fp8.dot_general(x0, w0, DENSE, out_sharding=jax.sharding.PartitionSpec()),
        ValueError,
        "out_sharding",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS, ids=[e[2] for e in ERRORS])
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
