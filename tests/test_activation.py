# SPDX-License-Identifier: Apache-2.0
"""Activations and valid rows, quantized in one reading: by the simulated kernels and plain JAX."""

import functools
import math

import cases
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from cases import E4M3
from test_quantize_kernel import assert_kernel_is_plain_jax, assert_same_bits

import jax_fp8gemm as fp8
from jax_fp8gemm import testing

pytestmark = pytest.mark.usefixtures("simulator_library")

M, K, N = 90, 40, 24
X_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
ACTIVATIONS = {"swiglu": fp8.swiglu, "geglu": fp8.geglu, "gelu": lambda x, _: fp8.gelu(x)}
every_activation = pytest.mark.parametrize("kind", ACTIVATIONS)
every_implementation = pytest.mark.parametrize("implementation", ["sim", "xla"])
every_x_dtype = pytest.mark.parametrize("x_dtype", X_DTYPES, ids=lambda d: jnp.dtype(d).name)


def factors(x_dtype, *lead: int):
    gate = 3 * cases.normal((*lead, M, K), seed=1)
    return gate.astype(x_dtype), cases.normal((*lead, M, K), seed=2, dtype=x_dtype)


def exact(kind: str, gate, up) -> tuple[np.ndarray, np.ndarray]:
    """Returns the activation in float64, and how far from it, relatively, it may be computed."""
    gate, up = (np.asarray(x).astype(np.float64) for x in (gate, up))
    exponent = gate if kind == "swiglu" else math.sqrt(8 / math.pi) * (gate + 0.044715 * gate**3)
    y = gate / (1 + np.exp(-exponent)) * (1 if kind == "gelu" else up)
    slope = 2.0**-21 if kind == "swiglu" else 2.0**-20
    return y, 2.0**-20 + slope * np.abs(exponent)


@pytest.mark.sampled(3)
@every_activation
@every_implementation
@every_x_dtype
@pytest.mark.parametrize("scale_format", ["float32", "pow2"])
def test_activation_is_rounded_once_and_quantized(kind, implementation, x_dtype, scale_format):
    """Where no rounding to the dtype of x is in doubt, bits are those of the exact activation."""
    check(kind, implementation, *factors(x_dtype), scale_format)


def check(kind: str, implementation: str, gate, up, scale_format: str) -> None:
    """Holds a quantized activation to the exact one."""
    x_dtype = gate.dtype
    options = {"scale_format": scale_format, "implementation": implementation}
    got = fp8.quantize(ACTIVATIONS[kind](gate, up), **options)
    y, bound = exact(kind, gate, up)
    low, high = (jnp.asarray(y * (1 + sign * bound)).astype(x_dtype) for sign in (-1, 1))
    (sure,) = np.nonzero(np.all(np.asarray(low == high), axis=-1))
    if x_dtype != jnp.float32:
        assert len(sure) > M / 3
        assert_same_bits(got[sure], fp8.quantize(low, **options)[sure])
    # Everywhere: a rounding to float8, one to x_dtype, and the bound.
    unit = 2.0**-4 + float(jnp.finfo(x_dtype).eps) + bound
    error = np.abs(np.asarray(got.dequantize(), np.float64) - y)
    assert (error <= unit * np.abs(y) + 2.0**-10 * np.asarray(got.scales)).all()


@pytest.mark.sampled(3)
@every_activation
@every_x_dtype
def test_extremes_and_edges(kind, x_dtype):
    """What is infinite, NaN or too large for the exponential; odd numbers of rows and columns."""
    top = float(jnp.finfo(x_dtype).max)
    gate = jnp.asarray([0.0, -0.0, 90, -90, 1e4, -1e4, jnp.inf, jnp.nan, top, -top, 1])
    gate = jnp.tile(gate, (13, 12)).astype(x_dtype)[:, :131]
    up = jnp.ones_like(gate)
    got, want = (
        np.asarray(fp8.quantize(ACTIVATIONS[kind](gate, up), implementation=i).dequantize())
        for i in ("sim", "xla")
    )
    np.testing.assert_array_equal(got, want)


@pytest.mark.sampled(2)
@every_x_dtype
@every_implementation
def test_factors_in_one_array(x_dtype, implementation):
    gate, up = factors(x_dtype, 2)
    for activation in (fp8.swiglu, fp8.geglu):
        quantize = functools.partial(fp8.quantize, implementation=implementation)
        joined = activation(jnp.concatenate([gate, up], -1))
        assert (joined.shape, joined.ndim, joined.dtype) == (gate.shape, 3, x_dtype)
        assert_same_bits(quantize(joined), quantize(activation(gate, up)))
        assert_same_bits(jax.vmap(quantize)(joined), quantize(joined))


def test_barriers_and_banks():
    gate, up = factors(jnp.bfloat16)
    with testing.simulator(seed=1, scheduler="random", shadow="happens_before"):
        fp8.quantize(fp8.swiglu(gate, up), implementation="sim")


# ---- Valid rows ----------------------------------------------------------------------------------


def zeroed(x, counts):
    """Returns x `(G, M, K)` with zeros past the first rows of each matrix."""
    return jnp.where(jnp.arange(x.shape[1])[None, :, None] < counts[:, None, None], x, 0)


@pytest.mark.sampled(3)
@every_x_dtype
@pytest.mark.parametrize(
    "sizes", [(3, 50, 0), (0,), (90,), (-4, 30, 90), (2**31 - 1,) * 3, (1,) * 70], ids=str
)
def test_rows_past_the_groups_are_zeros(x_dtype, sizes):
    sizes = np.asarray(sizes, np.int32)
    count = min(int(np.clip(sizes, 0, M).astype(np.int64).sum()), M)
    x = cases.normal((M, 150), seed=3, dtype=x_dtype).at[count:].set(jnp.nan)
    want = fp8.quantize(jnp.nan_to_num(x.at[count:].set(0)), implementation="xla")
    for implementation in ("sim", "xla"):
        got = fp8.quantize(x, group_sizes=sizes, implementation=implementation)
        assert_same_bits(got, want)


@pytest.mark.parametrize("rows", [5, 8, 33])
def test_masked_rows(rows):
    """Warps of 8 rows, which may be of several groups."""
    counts = jnp.asarray([0, rows, 3, 1, 2**30, -1], jnp.int32)
    x = cases.normal((6, rows, 150), seed=4, dtype=jnp.bfloat16)
    want = fp8.quantize(zeroed(x, counts), implementation="xla")
    for implementation in ("sim", "xla"):
        got = fp8.quantize(x, masked_m=counts, implementation=implementation)
        assert_same_bits(got, want)
    gate = fp8.swiglu(x, x)
    valid = zeroed(x, counts)
    assert_same_bits(
        fp8.quantize(gate, masked_m=counts, implementation="sim"),
        fp8.quantize(fp8.swiglu(valid, valid), implementation="sim"),
    )


def test_vmap_of_valid_rows():
    x = cases.normal((3, M, 70), seed=5)
    sizes = jnp.asarray([[3, 40], [90, 0], [0, 7]], jnp.int32)
    quantize = jax.vmap(lambda x, sizes, **options: fp8.quantize(x, group_sizes=sizes, **options))
    assert_kernel_is_plain_jax(
        lambda x, **o: jax.vmap(lambda x, s: fp8.quantize(x, group_sizes=s, **o))(x, sizes), x
    )
    want = fp8.quantize(zeroed(x, sizes.sum(-1)), implementation="xla")
    assert_same_bits(quantize(x, sizes), want)


# ---- Gradients -----------------------------------------------------------------------------------


def relative(got, want) -> float:
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    return float(np.linalg.norm(got - want) / (np.linalg.norm(want) or 1.0))


@pytest.mark.sampled(6)
@every_activation
@every_implementation
def test_gradients_of_dot(kind, implementation):
    """Those of dot of the activation as an array, pulled back through it."""
    gate, up = factors(jnp.bfloat16)
    w = cases.normal((K, N), seed=6, dtype=jnp.bfloat16)
    dy = cases.normal((M, N), seed=7)

    def loss(activation, gate, up, w):
        y = fp8.dot(activation(gate, up), w, implementation=implementation)
        return (y.astype(jnp.float32) * dy).sum()

    lazy = ACTIVATIONS[kind]
    at_once = lambda *factors: lazy(*factors).compute()  # noqa: E731
    got, want = (jax.grad(f, (1, 2, 3))(f_of, gate, up, w) for f, f_of in
                 ((loss, lazy), (loss, at_once)))  # fmt: skip
    for a, b in zip(got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.any(np.asarray(b)) or kind == "gelu"
        assert relative(a, b) < (1e-6 if implementation == "xla" else 2e-3)
    jitted = jax.jit(jax.grad(functools.partial(loss, lazy), (0, 1, 2)))(gate, up, w)
    for a, b in zip(jitted, got, strict=True):
        assert relative(a, b) < 1e-2


@every_implementation
def test_gradients_of_ragged_dot(implementation):
    both = jnp.concatenate(factors(jnp.float32), -1)
    experts = cases.normal((3, K, N), seed=8)
    sizes = jnp.asarray([30, 0, 41], jnp.int32)
    dy = cases.normal((M, N), seed=9)

    def loss(both, experts, activation):
        y = fp8.ragged_dot(activation(both), experts, sizes, implementation=implementation)
        return (y * dy).sum()

    got = jax.grad(loss, (0, 1))(both, experts, fp8.swiglu)
    want = jax.grad(loss, (0, 1))(both, experts, lambda x: fp8.swiglu(x).compute())
    for a, b in zip(got, want, strict=True):
        assert relative(a, b) < (1e-6 if implementation == "xla" else 2e-3)
    assert not np.any(np.asarray(got[0][71:]))


def test_one_example():
    """Without leading dimensions, and as an argument of a function that is compiled."""
    gate, up = (x[0] for x in factors(jnp.float32))
    w = cases.normal((K, N), seed=6)
    want = fp8.dot(fp8.swiglu(gate, up).compute(), w)
    np.testing.assert_array_equal(jax.jit(fp8.dot)(fp8.swiglu(gate, up), w), want)


# ---- Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [fp8.gelu, fp8.swiglu, lambda x: fp8.geglu(x, x)])
def test_numbers_are_no_activations(make):
    with pytest.raises(ValueError, match=r"must have shape \(\.\.\., K\), got \(\)"):
        make(jnp.float32(1))


def test_mistakes():
    x, sizes = jnp.ones((4, 6)), jnp.ones(2, jnp.int32)
    with pytest.raises(ValueError, match=r"swiglu: up must have the shape and dtype of gate"):
        fp8.swiglu(x, x[:2])
    with pytest.raises(ValueError, match=r"geglu: gate must have shape \(\.\.\., 2 \* K\)"):
        fp8.geglu(x[:, :5])
    with pytest.raises(TypeError, match="gelu: x must have dtype"):
        fp8.gelu(x.astype(E4M3))
    with pytest.raises(ValueError, match="group_sizes and masked_m must not both be given"):
        fp8.quantize(x, group_sizes=sizes, masked_m=sizes)
    with pytest.raises(ValueError, match=r"block must be \(1, 128\) with group_sizes or masked_m"):
        fp8.quantize(x, (128, 128), group_sizes=sizes)
    with pytest.raises(ValueError, match=r"block must be \(1, 128\) with an activation"):
        fp8.quantize(fp8.gelu(x), (128, 128))
    with pytest.raises(ValueError, match=r"masked_m must have shape \(G,\) = \(1,\)"):
        fp8.quantize(x[None], masked_m=sizes)


def test_an_activation_passes_through_export():
    of = fp8.swiglu(*factors(jnp.bfloat16))
    exported = jax.export.export(jax.jit(lambda a: fp8.quantize(a)))(of)
    read = jax.export.deserialize(bytearray(exported.serialize()))
    got, want = read.call(of), jax.jit(fp8.quantize)(of)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
