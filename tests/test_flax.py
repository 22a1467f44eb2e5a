# SPDX-License-Identifier: Apache-2.0
"""Flax takes a BlockScaled: serialization as docs/checkpoints.md says, and tables as it is."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _source import ROOT

pytest.importorskip("flax")

from flax import linen, nnx, serialization

import jax_fp8gemm as fp8

WEIGHT = fp8.quantize(jnp.arange(128.0 * 256).reshape(128, 256), (128, 128))
X = jnp.ones((4, 256))


@pytest.fixture
def registered(monkeypatch):
    """Runs the snippet of docs/checkpoints.md."""
    monkeypatch.setattr(
        serialization, "_STATE_DICT_REGISTRY", dict(serialization._STATE_DICT_REGISTRY)
    )
    text = (ROOT / "docs/checkpoints.md").read_text()
    (snippet,) = re.findall(r"```python\n(from flax import serialization\n.*?)```", text, re.DOTALL)
    exec(snippet, {"fp8": fp8})


@pytest.mark.parametrize("block", [(1, 128), (128, 128)])
def test_serialization(registered, block):
    tree = {"w": fp8.quantize(X, block), "b": jnp.ones(3)}
    target = jax.tree.map(jnp.zeros_like, tree)
    state = serialization.to_state_dict(tree)
    assert set(state["w"]) == {"values", "scales"}
    for back in (
        serialization.from_state_dict(target, state),
        serialization.from_bytes(target, serialization.to_bytes(tree)),
    ):
        assert jax.tree.structure(back) == jax.tree.structure(tree)
        for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
            assert x.dtype == y.dtype
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


class NnxLayer(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(WEIGHT)

    def __call__(self, x):
        return fp8.dot(x, self.w.get_value(), implementation="xla")


class LinenLayer(linen.Module):
    @linen.compact
    def __call__(self, x):
        w = self.param("w", lambda key: WEIGHT)
        return fp8.dot(x, w, implementation="xla")


@pytest.mark.parametrize(
    "tabulate",
    [
        lambda: nnx.tabulate(NnxLayer(), X),
        lambda: LinenLayer().tabulate(jax.random.key(0), X),
    ],
    ids=["nnx", "linen"],
)
def test_tabulate(tabulate):
    table = re.sub(r"\x1b\[[0-9;]*m", "", tabulate())
    assert "float8_e4m3fn[128,256]" in table
    assert "32,770" in table  # values and scales


def linen_attention(**products):
    model = linen.MultiHeadDotProductAttention(num_heads=2, **products)
    return lambda x: model.init_with_output(jax.random.key(0), x)


def nnx_attention(**products):
    layer = {"num_heads": 2, "in_features": 256, "decode": False, "rngs": nnx.Rngs(0)}
    return nnx.MultiHeadAttention(**layer, **products)


@pytest.mark.parametrize(
    ("attention", "suffix"),
    [
        (nnx_attention, "dot_general"),
        (linen_attention, "dot_general"),
        (linen_attention, "dot_general_cls"),
    ],
)
def test_projections_of_attention(attention, suffix):
    """Four are ours, by the arguments of docs/frameworks.md, and scores are not."""
    weights = []

    def product(x, w, *args, **kwargs):
        weights.append(w.shape)
        return fp8.dot_general(x, w, *args, implementation="xla", **kwargs)

    given = (lambda: product) if suffix == "dot_general_cls" else product
    layer = attention(**{f"qkv_{suffix}": given, f"out_{suffix}": given})
    program = str(jax.make_jaxpr(layer)(X))
    assert weights == [(256, 2, 128)] * 3 + [(2, 128, 256)]
    assert "f8_e4m3fn" in program
