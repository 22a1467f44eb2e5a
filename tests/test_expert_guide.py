# SPDX-License-Identifier: Apache-2.0
"""docs/sharding.md: a checkpoint's experts on 8 devices; and gradients that travel in FP8."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _eight_devices import run_with_eight_devices
from _source import ROOT
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

NUM_EXPERTS, TOP, TOKENS, WIDTH, HIDDEN = 16, 2, 64, 256, 128
SHAPES = {"gate": (HIDDEN, WIDTH), "up": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN)}
RUN = """
import sys
import numpy as np

folder, inputs, outputs = sys.argv[1:]
x, chosen, gates = (np.load(inputs)[name] for name in ("x", "chosen", "gates"))
{snippet}
assert len(weights["gate"].values.addressable_shards) == 8
assert {{each.data.shape[0] for each in weights["gate"].values.addressable_shards}} == {{2}}
np.savez(outputs, y=y)
"""


def _on_one_device(weights, x, chosen, gates):
    """Every token by each of its experts."""
    order = jnp.argsort(chosen.reshape(-1))
    sizes = jnp.bincount(chosen.reshape(-1), length=NUM_EXPERTS)
    rows = x[order // TOP]
    gate, up = (fp8.ragged_dot(rows, weights[name], sizes) for name in ("gate", "up"))
    out = fp8.ragged_dot(fp8.swiglu(gate, up), weights["down"], sizes)
    return jnp.zeros_like(x).at[order // TOP].add(out * gates.reshape(-1)[order][:, None])


@pytest.mark.slow
def test_experts_of_a_checkpoint_on_8_devices(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    weights = {
        name: fp8.quantize(rng.standard_normal((NUM_EXPERTS, *shape), np.float32), (128, 128))
        for name, shape in SHAPES.items()
    }
    prefix = "model.layers.3.mlp.experts."
    tensors = {f"{prefix}{name}_proj.weight": w for name, w in weights.items()}
    fp8.checkpoint.save(tmp_path / "checkpoint", tensors)
    x = rng.standard_normal((TOKENS, WIDTH), np.float32)
    chosen = rng.integers(0, NUM_EXPERTS, (TOKENS, TOP), np.int32)
    gates = rng.random((TOKENS, TOP), np.float32)
    inputs, outputs = tmp_path / "inputs.npz", tmp_path / "outputs.npz"
    np.savez(inputs, x=x, chosen=chosen, gates=gates)

    page = (ROOT / "docs/sharding.md").read_text()
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.syspath_prepend(ROOT / "examples")
    run_with_eight_devices(
        "-c", RUN.format(snippet=snippet), tmp_path / "checkpoint", inputs, outputs
    )
    want = np.asarray(jax.jit(_on_one_device)(weights, x, chosen, gates))
    error = np.linalg.norm(np.load(outputs)["y"] - want) / np.linalg.norm(want)
    assert error < 2e-6  # sums in another order


@pytest.mark.slow
def test_gradients_near_the_largest_float16_stay_finite(monkeypatch):
    """Their scale, rounded up to a power of two, would pass it."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    from expert_parallel import expert_layer

    mesh = jax.make_mesh((1,), ("ep",), axis_types=(AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("ep"), out_specs=P("ep"))
    def layer(x):
        chosen, gates = jnp.zeros((len(x), 1), jnp.int32), jnp.ones((len(x), 1))
        experts = lambda rows, sizes: rows  # noqa: E731
        return expert_layer(experts, x, chosen, gates, 1, "ep", send_gradients_fp8=True)[0]

    x = jnp.ones((8, 128), jnp.float16)
    (dx,) = jax.jit(lambda x: jax.vjp(layer, x)[1](65000 * x))(x)
    np.testing.assert_allclose(np.asarray(dx, np.float32), 65000, rtol=2**-4)
