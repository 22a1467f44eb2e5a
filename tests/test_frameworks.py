# SPDX-License-Identifier: Apache-2.0
"""Frameworks multiply by our products: docs/frameworks.md runs, and every bit is ours."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _frameworks import SECTIONS, needs, run_section, same_bits
from _tiers import slow_unless

import jax_fp8gemm as fp8
from jax_fp8gemm import frameworks

W = jax.random.normal(jax.random.key(0), (256, 384))
X = jax.random.normal(jax.random.key(1), (24, 256))
xla = {"implementation": "xla"}
# What qwix itself calls.
ignore_qwix = pytest.mark.filterwarnings("ignore:The 'm.iter_modules:DeprecationWarning")


@ignore_qwix
@pytest.mark.parametrize(
    "name", [slow_unless(name in ("Flax Linen", "orbax"), name) for name in SECTIONS]
)
def test_page(extension, name):
    needs("optax", *SECTIONS[name])
    # As a reader has them.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names = run_section(name)
        if "losses" in names:
            losses, loss = names["losses"], names["loss"]
            assert losses[-1] < 0.9 * losses[0]
            program = str(jax.make_jaxpr(jax.grad(loss))(names["parameters"]))
            assert "f8_e4m3fn" in program
    if name == "optax":
        assert names["parameters"]["base"] is not names["base"]
        same_bits(names["parameters"]["base"], names["base"])
        w = names["base"].dequantize().T
        want = jax.grad(lambda w: ((names["x"] @ w - names["y"]) ** 2).mean())(w)
        assert jnp.linalg.norm(names["gradient"](w) - want) < 0.1 * jnp.linalg.norm(want)
    if name == "orbax":
        same_bits(names["restored"], names["tree"])
    if name == "qwix":
        want = names["x"] @ names["weight"].dequantize().T
        assert jnp.linalg.norm(names["served"] - want) < 0.05 * jnp.linalg.norm(want)


def test_importing_the_package_imports_no_framework():
    code = "import sys, jax_fp8gemm; print({'flax', 'qwix', 'tokamax', 'optax'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# ---- einsum ------------------------------------------------------------------------------------

EQUATIONS = {
    "mk,kn->mn": ((24, 256), (256, 96)),
    "...k, nk->...n": ((2, 3, 256), (96, 256)),
    "bmk,bkn->bmn": ((2, 8, 256), (2, 256, 96)),
    "...k,...kn->...n": ((2, 3, 16), (2, 3, 16, 8)),
    "mhk,hkn->nm": ((24, 2, 64), (2, 64, 96)),
    "tk,gkn->gtn": ((24, 256), (2, 256, 96)),
    "mk,kn->mnk": ((8, 16), (16, 4)),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_is_that_of_jax(monkeypatch, equation):
    """With JAX's product in the place of ours."""

    def product(*args, implementation, recipe, **kwargs):
        return jax.lax.dot_general(*args, **kwargs)

    monkeypatch.setattr(frameworks, "dot_general", product)
    x, w = (jax.random.normal(jax.random.key(2), shape) for shape in EQUATIONS[equation])
    want = np.einsum(equation, np.asarray(x, np.float64), np.asarray(w, np.float64))
    np.testing.assert_allclose(frameworks.einsum(equation, x, w), want, rtol=1e-5, atol=1e-4)


def test_einsum():
    got = frameworks.einsum("mk,kn->nm", X, W, preferred_element_type=jnp.bfloat16, **xla)
    same_bits(got, fp8.dot(X, W, preferred_element_type=jnp.bfloat16, **xla).T)


def test_einsum_asks_for_a_sharding(monkeypatch):
    asked = {}
    monkeypatch.setattr(frameworks, "dot_general", lambda *_, **kwargs: asked.update(kwargs))
    frameworks.einsum("mk,kn->mn", X, W, out_sharding=jax.P("x"))
    assert asked["out_sharding"] == jax.P("x")


@pytest.mark.parametrize(
    "subscripts",
    ["mk,kn", "mkz,kn->mn", "mk,kn->n", "mm,mn->mn", "mk,knz->mnz", "mk->m"],
)
def test_einsum_refuses(subscripts):
    with pytest.raises(ValueError, match="^einsum: subscripts must"):
        frameworks.einsum(subscripts, X, W, **xla)


def test_einsum_refuses_other_numbers_of_operands():
    with pytest.raises(ValueError, match="^einsum: operands must be two"):
        frameworks.einsum("mk,kn,nz->mz", X, W, W, **xla)


def test_einsum_refuses_a_sharding_of_a_transposed_result():
    with pytest.raises(ValueError, match="^einsum: out_sharding needs"):
        frameworks.einsum("mk,kn->nm", X, W, out_sharding=jax.P(), **xla)


# ---- qwix --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(256, 384), (3, 128, 256), (64, 256), (1, 100)])
@pytest.mark.parametrize("block", [(1, 128), (128, 128)])
def test_qarray_round_trip(shape, block):
    needs("qwix")
    import qwix

    x = fp8.quantize(jax.random.normal(jax.random.key(4), shape), block, **xla)
    q = frameworks.to_qarray(x)
    same_bits(qwix.dequantize(q), x.dequantize())
    back = frameworks.from_qarray(q)
    same_bits(back.dequantize(), x.dequantize())
    assert back.block == block or shape[-2] == 1


def test_what_qwix_quantizes_is_a_weight():
    needs("qwix")
    import qwix

    w = W.astype(jnp.bfloat16)
    q = qwix.quantize(w, jnp.float8_e4m3fn, tiled_axes={0: 128, 1: 128})
    assert q.scale.dtype == jnp.bfloat16
    weight = frameworks.from_qarray(q.T)
    assert weight.block == (128, 128)
    same_bits(weight.dequantize(), qwix.dequantize(q.astype(jnp.float32)).T)


class FakeQArray:
    """What `from_qarray` reads of a QArray."""

    def __init__(self, shape, scale_shape, dtype=jnp.float8_e4m3fn, zero_point=None):
        self.qvalue, self.scale = jnp.zeros(shape, dtype), jnp.ones(scale_shape)
        self.shape, self.ndim, self.zero_point = shape, len(shape), zero_point
        self.scale_tile_shape = tuple(a // b for a, b in zip(shape, scale_shape, strict=True))


@pytest.mark.parametrize(
    ("error", "match", "x"),
    [
        (ValueError, "tiles of 1x128 or 128x128, got", FakeQArray((256, 256), (2, 256))),
        # Two tiles of 96 are not a block of 128 and one of 64.
        (ValueError, "tiles of 1x128 or 128x128, got", FakeQArray((192, 256), (2, 2))),
        (ValueError, "tiles of 1x128 or 128x128, got", FakeQArray((2, 128, 128), (1, 1, 1))),
        (ValueError, "tiles of 1x128 or 128x128, got", FakeQArray((128,), (1,))),
        (ValueError, "no zero point", FakeQArray((128, 128), (1, 1), zero_point=0)),
        (TypeError, "values", FakeQArray((128, 128), (1, 1), dtype=jnp.int8)),
    ],
)
def test_from_qarray_refuses(error, match, x):
    with pytest.raises(error, match=match):
        frameworks.from_qarray(x)


def test_to_qarray_refuses():
    partial = fp8.quantize(jnp.ones((192, 128)), (128, 128), **xla)
    with pytest.raises(
        ValueError, match=r"^to_qarray: x must have .* whole blocks .* \(192, 128\)"
    ):
        frameworks.to_qarray(partial)
    with pytest.raises(TypeError, match="^to_qarray: x must be a BlockScaled"):
        frameworks.to_qarray(W)


@pytest.mark.parametrize("path", ["(up", None, 3])
def test_qwix_provider_refuses(path):
    with pytest.raises(ValueError, match="^qwix_provider: module_path must be a regular"):
        frameworks.qwix_provider(path)


@ignore_qwix
@pytest.mark.slow
def test_qwix_replaces_what_matches_and_nothing_else():
    needs("qwix")
    import qwix
    from flax import nnx

    sizes = jnp.asarray([10, 14])

    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.up = nnx.Linear(256, 384, use_bias=False, rngs=rngs)
            self.mid = nnx.Einsum("bk,kn->bn", (384, 256), rngs=rngs)
            self.experts = nnx.Param(jax.random.normal(jax.random.key(5), (2, 256, 128)))
            self.head = nnx.Linear(128, 16, use_bias=False, rngs=rngs)

        def __call__(self, x):
            x = self.mid(self.up(x))
            return self.head(jax.lax.ragged_dot(x, self.experts[...], sizes))

    def ours(w, x):
        x = fp8.dot(x, w["up"]["kernel"][...], recipe=recipe, **xla)
        x = fp8.dot(x, w["mid"]["kernel"][...], recipe=recipe, **xla)
        x = fp8.ragged_dot(x, w["experts"][...], sizes, recipe=recipe, **xla)
        return x @ w["head"]["kernel"][...]

    recipe = fp8.Recipe(gradient_dtype=jnp.float8_e5m2)
    provider = frameworks.qwix_provider("|up|mid", recipe=recipe, **xla)
    graph, weights = nnx.split(qwix.quantize_model(Model(), provider, X))

    def value_and_grad(f):
        return jax.jit(jax.value_and_grad(lambda w: (f(w, X) ** 2).mean()))(weights)

    same_bits(value_and_grad(lambda w, x: nnx.merge(graph, w)(x)), value_and_grad(ours))


def test_qwix_and_linen():
    needs("qwix")
    import qwix
    from flax import linen

    model = linen.Sequential([linen.Dense(128, use_bias=False), linen.Dense(8, use_bias=False)])
    weights = model.init(jax.random.key(7), X)
    provider = frameworks.qwix_provider("layers_0", **xla)
    kernels = [weights["params"][f"layers_{i}"]["kernel"] for i in range(2)]
    got = qwix.quantize_model(model, provider).apply(weights, X)
    same_bits(got, fp8.dot(X, kernels[0], **xla) @ kernels[1])


# ---- tokamax -----------------------------------------------------------------------------------

EXPERTS = jax.random.normal(jax.random.key(6), (2, 256, 128))
SIZES = jnp.asarray([10, 12])


def test_tokamax_ragged_dot():
    """As tokamax calls it, without tokamax."""
    got = frameworks.tokamax_ragged_dot(
        X,
        EXPERTS[1:],
        group_sizes=SIZES,
        preferred_element_type=jnp.bfloat16,
        group_offset=jnp.asarray([1]),
        activation=jnp.tanh,
        **xla,
    )
    want = fp8.ragged_dot(X, EXPERTS[1:], SIZES, None, jnp.float32, jnp.asarray([1]), **xla)
    same_bits(got, jnp.tanh(want).astype(jnp.bfloat16))


def test_tokamax_ragged_dot_leaves_to_others():
    transposed = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), (0,), (0,))
    with pytest.raises(NotImplementedError, match="dimension_numbers must be those of jax.lax"):
        frameworks.tokamax_ragged_dot(
            X, EXPERTS, group_sizes=SIZES, ragged_dot_dimension_numbers=transposed
        )
    rows = FakeQArray((24, 256), (24, 2))
    with pytest.raises(NotImplementedError, match="lhs must be an array"):
        frameworks.tokamax_ragged_dot(rows, EXPERTS, group_sizes=SIZES)
    with pytest.raises(NotImplementedError, match="fuse_gateup_activation must not be set"):
        frameworks.tokamax_ragged_dot(
            X, EXPERTS, group_sizes=SIZES, zero_initialize=True, fuse_gateup_activation="silu"
        )


@pytest.mark.slow
def test_tokamax(monkeypatch):
    needs("tokamax")
    import tokamax

    monkeypatch.setattr(sys, "argv", ["python"])  # which its implementations parse

    ours = [functools.partial(frameworks.tokamax_ragged_dot, **xla)]
    sizes = tokamax.RaggedDotGroupSizes(SIZES, len(X))

    def gradients(f):
        return jax.grad(lambda x, w: (f(x, w) ** 2).sum(), (0, 1))(X, EXPERTS)

    got = gradients(lambda x, w: tokamax.ragged_dot(x, w, sizes, implementation=ours))
    same_bits(got, gradients(lambda x, w: fp8.ragged_dot(x, w, SIZES, **xla)))

    weights = fp8.quantize(EXPERTS.mT, (128, 128), **xla)
    q = frameworks.to_qarray(weights).mT
    served = tokamax.ragged_dot(X, q, SIZES, implementation=ours)
    same_bits(served, fp8.ragged_dot(X, weights, SIZES, None, jnp.float32, **xla))
    # A sequence goes on to the next one.
    rows = frameworks.to_qarray(fp8.quantize(X, **xla))
    want = tokamax.ragged_dot(rows, EXPERTS, SIZES, implementation="xla")
    same_bits(tokamax.ragged_dot(rows, EXPERTS, SIZES, implementation=[*ours, "xla"]), want)
