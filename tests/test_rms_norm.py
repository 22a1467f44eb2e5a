# SPDX-License-Identifier: Apache-2.0
"""rms_norm, multiplied out while it is quantized: kernels and plain JAX to the bit; gradients."""

import functools

import cases
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from test_quantize_kernel import assert_same_bits

import jax_fp8gemm as fp8
from jax_fp8gemm import testing

pytestmark = pytest.mark.usefixtures("simulator_library")

M, K, N = 90, 200, 24
X_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
every_x_dtype = pytest.mark.parametrize("x_dtype", X_DTYPES, ids=lambda d: jnp.dtype(d).name)
every_implementation = pytest.mark.parametrize("implementation", ["sim", "xla"])


def given(x_dtype=jnp.bfloat16, *lead: int):
    """Returns rows of different magnitudes, and a weight."""
    x = cases.normal((*lead, M, K), seed=1)
    magnitudes = np.exp2(np.arange(M) % 17 - 8).reshape(*(1,) * len(lead), M, 1)
    return (x * magnitudes.astype(np.float32)).astype(x_dtype), 1 + cases.normal((K,), seed=2) / 4


def norm(x, weight, epsilon=1e-6):
    """The formula, operation by operation."""
    wide = x.astype(jnp.float32)
    roots = jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + epsilon)
    factors = jnp.expand_dims(weight.astype(jnp.float32), range(x.ndim - 1))
    return (wide * roots * factors).astype(x.dtype)


def quantized(x, weight, **options):
    return fp8.quantize(fp8.rms_norm(x, weight), **options)


@pytest.mark.sampled(5)
@every_x_dtype
@pytest.mark.parametrize("scale_format", ["float32", "pow2"])
@pytest.mark.parametrize("lead", [(), (2, 3)], ids=str)
def test_bits_are_those_of_the_norm_as_an_array(x_dtype, scale_format, lead):
    x, weight = given(x_dtype, *lead)
    lazy = fp8.rms_norm(x, weight)
    assert (lazy.shape, lazy.ndim, lazy.dtype) == (x.shape, x.ndim, x.dtype)
    want = fp8.quantize(lazy.compute(), scale_format=scale_format, implementation="xla")
    for implementation in ("sim", "xla"):
        options = {"scale_format": scale_format, "implementation": implementation}
        assert_same_bits(quantized(x, weight, **options), want)
        # Inside of one program too, in which XLA could leave out a rounding.
        assert_same_bits(jax.jit(functools.partial(quantized, **options))(x, weight), want)


@every_x_dtype
def test_the_norm_is_the_formula(x_dtype):
    x, weight = given(x_dtype)
    weight = weight.astype(jnp.bfloat16)
    rtol = float(jnp.finfo(x_dtype).eps) / 2 + 2.0**-20  # a rounding, and those before it
    for epsilon in (1e-6, 0.5):
        got = fp8.rms_norm(x, weight, epsilon).compute()
        wide, columns = np.asarray(x, np.float64), np.asarray(weight, np.float64)
        want = wide / np.sqrt(np.mean(wide**2, -1, keepdims=True) + epsilon) * columns
        atol = float(jnp.finfo(x_dtype).smallest_subnormal) / 2
        np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rtol, atol=atol)


@every_x_dtype
def test_extremes_and_edges(x_dtype):
    """Roots that are infinite, NaN or 0, and columns of NaN; the last block has three columns."""
    info = jnp.finfo(x_dtype)
    x = jnp.ones((13, 131), x_dtype).at[0].set(0).at[1].set(info.tiny).at[2].set(info.max)
    x = x.at[3, 5].set(jnp.nan).at[4, 7].set(jnp.inf)
    for weight in (jnp.ones(131), jnp.ones(131).at[130].set(jnp.nan).at[3].set(jnp.inf)):
        lazy = fp8.rms_norm(x, weight, 0)
        got, want = (fp8.quantize(lazy, implementation=i) for i in ("sim", "xla"))
        np.testing.assert_array_equal(got.scales, want.scales)
        np.testing.assert_array_equal(got.dequantize(), want.dequantize())
        assert np.isnan(np.asarray(want.scales)[[0, 3]]).all()


@every_implementation
def test_rows_in_no_group_are_zeros(implementation):
    """Whatever the factors of their columns are."""
    x, weight = given(jnp.bfloat16, 3)
    weight = weight.at[-1].set(jnp.nan)
    counts = jnp.asarray([0, 41, -3], jnp.int32)
    got = quantized(x, weight, masked_m=counts, implementation=implementation)
    whole = quantized(x, weight, implementation="xla")
    assert_same_bits(got[1, :41], whole[1, :41])
    rest = fp8.concatenate([got[0], got[1, 41:], got[2]])
    assert_same_bits(rest, fp8.quantize(jnp.zeros(rest.shape), implementation="xla"))


VMAPPED = {
    "rows": ((0, None), (2,), ()),
    "rows and weights": ((0, 0), (2,), (2,)),
    "weights": ((None, 0), (), (2,)),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("inner", VMAPPED)
@pytest.mark.parametrize("outer", [None, *VMAPPED])
@every_implementation
def test_vmap(inner, outer, implementation):
    """Each weight meets the rows that are its own; one that is shared is not repeated."""
    x, weight = given(jnp.bfloat16)
    f, want = (functools.partial(quantized, implementation=i) for i in (implementation, "xla"))
    x_lead, weight_lead = (), ()
    for name in filter(None, (inner, outer)):
        axes, *leads = VMAPPED[name]
        f, want = jax.vmap(f, axes), jax.vmap(want, axes)
        x_lead, weight_lead = leads[0] + x_lead, leads[1] + weight_lead
    x = cases.normal((*x_lead, M, K), seed=1, dtype=jnp.bfloat16)
    weight = cases.normal((*weight_lead, K), seed=2)
    got = f(x, weight)
    assert_same_bits(got, want(x, weight))
    last = quantized(x[(-1,) * len(x_lead)], weight[(-1,) * len(weight_lead)])
    assert_same_bits(got[(-1,) * (got.ndim - 2)], last)


def test_barriers_and_banks():
    with testing.simulator(seed=1, scheduler="random", shadow="happens_before"):
        quantized(*given(), implementation="sim")


@pytest.mark.slow
def test_group_offset_moves_rows_with_their_factors():
    x, weight = given(jnp.float32)
    experts = cases.normal((1, K, N), seed=3)
    sizes = jnp.asarray([50, 30], jnp.int32)
    got = fp8.ragged_dot(fp8.rms_norm(x, weight), experts, sizes, group_offset=jnp.int32(1))
    want = fp8.dot(fp8.rms_norm(x, weight), experts[0])
    np.testing.assert_allclose(got[50:80], want[50:80], rtol=1e-5, atol=1e-4)
    assert not np.any(np.asarray(got[:50]))


# ---- Gradients -----------------------------------------------------------------------------------


def relative(got, want) -> float:
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def dot_loss(x, weight, w, *, of, implementation):
    y = fp8.dot(of(x, weight), w, implementation=implementation)
    return (y.astype(jnp.float32) * cases.normal(y.shape, seed=7)).sum()


def ragged_loss(x, weight, w, *, of, implementation):
    experts, sizes = jnp.stack([w, 2 * w, -w]), jnp.asarray([30, 0, 41], jnp.int32)
    y = fp8.ragged_dot(of(x, weight), experts, sizes, implementation=implementation)
    return (y.astype(jnp.float32) * cases.normal(y.shape, seed=7)).sum()


@pytest.mark.sampled(6)
@every_implementation
@pytest.mark.parametrize("loss", [dot_loss, ragged_loss])
@pytest.mark.parametrize("x_dtype", [jnp.bfloat16, jnp.float32], ids=lambda d: jnp.dtype(d).name)
def test_gradients(loss, implementation, x_dtype):
    """Those of the product of the norm as an array, pulled back through the formula."""
    x, weight = given(x_dtype)
    w = cases.normal((K, N), seed=6)
    got, want = (
        jax.grad(functools.partial(loss, of=of, implementation=implementation), (0, 1, 2))(
            x, weight, w
        )
        for of in (fp8.rms_norm, norm)
    )
    # The gradient of x is a difference of two sums, each rounded to its dtype.
    bound = 2e-2 if x_dtype == jnp.bfloat16 else 1e-5
    for a, b in zip(got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert relative(a, b) < bound


@pytest.mark.slow
def test_rows_in_no_group_have_no_part_in_gradients():
    x, weight = given(jnp.float32)
    loss = functools.partial(ragged_loss, of=fp8.rms_norm, implementation="xla")
    w = cases.normal((K, N), seed=6)
    want = jax.grad(loss, (0, 1, 2))(x, weight, w)
    got = jax.grad(loss, (1, 2))(x.at[71:].set(jnp.nan), weight, w)
    for a, b in zip(got, want[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.any(np.asarray(want[0][71:]))


@pytest.mark.slow
def test_one_norm_for_several_products():
    """Quantized once, with the gradients of all: bits of the array that it stands for."""
    x, weight = given(jnp.float32)
    w = cases.normal((K, N), seed=6)

    def loss(x, weight, of):
        q = fp8.QuantizedActivation.quantize(of(x, weight))
        return (fp8.dot(q, w) ** 2 + fp8.dot(q, -2 * w)).sum()

    got, want = (jax.grad(loss, (0, 1))(x, weight, of) for of in (fp8.rms_norm, norm))
    for a, b in zip(got, want, strict=True):
        assert relative(a, b) < 1e-6


def test_one_example():
    x, weight = given(jnp.float32)
    w = cases.normal((K, N), seed=6)
    got = jax.jit(fp8.dot)(fp8.rms_norm(x[0], weight), w)
    np.testing.assert_array_equal(got, fp8.dot(norm(x[:1], weight), w)[0])


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("implementation", ["sim", "xla"])
def test_a_norm_that_vmap_returns_has_a_weight_for_each(lead, implementation):
    """For each row, which no kernel takes, or for each matrix."""
    x = cases.normal((*lead, M, K), seed=1)
    w = cases.normal((K, N), seed=6)
    weight = given()[1]
    of = lambda rows: fp8.rms_norm(rows, weight)  # noqa: E731
    for _ in range(1, x.ndim):
        of = jax.vmap(of)
        if of(x).shape != x.shape:
            continue
        got = fp8.dot(of(x), w, implementation=implementation)
        want = fp8.dot(norm(x, weight), w, implementation=implementation)
        np.testing.assert_array_equal(got, want)


def test_rows_in_no_group_have_no_gradient_whatever_they_hold():
    x, weight = given(jnp.float32)
    x = x.at[10:].set(jnp.nan)
    experts = cases.normal((2, K, N), seed=3)
    sizes = jnp.asarray([4, 6], jnp.int32)

    def loss(x, weight):
        return fp8.ragged_dot(fp8.rms_norm(x, weight), experts, sizes).sum()

    dx, dweight = jax.grad(loss, (0, 1))(x, weight)
    want = jax.grad(loss, (0, 1))(x.at[10:].set(1), weight)
    np.testing.assert_array_equal(dx, want[0])
    np.testing.assert_array_equal(dweight, want[1])
    assert not dx[10:].any() and dx[:10].any()


# ---- Mistakes and export -------------------------------------------------------------------------


def test_mistakes():
    x = jnp.ones((4, 6))
    with pytest.raises(ValueError, match=r"rms_norm: weight must have shape \(K,\) = \(6,\), got"):
        fp8.rms_norm(x, x)
    with pytest.raises(ValueError, match=r"rms_norm: x must have shape \(\.\.\., K\), got \(\)"):
        fp8.rms_norm(jnp.float32(1), jnp.ones(1))
    with pytest.raises(TypeError, match="rms_norm: weight must have dtype"):
        fp8.rms_norm(x, jnp.ones(6, jnp.int32))
    with pytest.raises(TypeError, match="rms_norm: x must be an array, got list"):
        fp8.rms_norm([1.0], jnp.ones(1))
    for epsilon in (-1e-6, float("nan"), float("inf"), 1e300, 10**400):
        with pytest.raises(ValueError, match=r"rms_norm: epsilon must be from 0 to 3\.4e\+38, got"):
            fp8.rms_norm(x, jnp.ones(6), epsilon)
    for epsilon in ("1e-6", True, jnp.float32(1e-6)):
        with pytest.raises(TypeError, match="rms_norm: epsilon must be a number, got "):
            fp8.rms_norm(x, jnp.ones(6), epsilon)
    for f in (lambda y: fp8.rms_norm(y, jnp.ones(6)), fp8.quantize_transposed, fp8.gelu):
        with pytest.raises(TypeError, match=r"\w+: x must be an array, got RMSNorm\."):
            f(fp8.rms_norm(x, jnp.ones(6)))
    with pytest.raises(ValueError, match=r"block must be \(1, 128\) with an activation"):
        fp8.quantize(fp8.rms_norm(x, jnp.ones(6)), (128, 128))


def test_a_norm_passes_through_export():
    lazy = fp8.rms_norm(*given())
    exported = jax.export.export(jax.jit(lambda a: fp8.quantize(a)))(lazy)
    read = jax.export.deserialize(bytearray(exported.serialize()))
    for one, other in zip(
        jax.tree.leaves(read.call(lazy)), jax.tree.leaves(fp8.quantize(lazy)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
