# SPDX-License-Identifier: Apache-2.0
"""A mixture-of-experts transformer, experts sharded among devices, in bfloat16 and in FP8.

Tokens travel to their experts and back by all-to-all, see expert_parallel.py. No token is dropped.
The load is balanced without an auxiliary loss: a bias on each expert's score, which counts in the
choice of experts but not in their weights, follows the sign of the expert's missing load.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import training
from expert_parallel import expert_layer
from jax import lax
from jax.sharding import PartitionSpec as P  # noqa: N817

import jax_fp8gemm as fp8

AXIS, TOP, HEAD = "devices", 2, 64
EXPERT_WEIGHTS = ("gate", "up", "down")


def bfloat16_ragged_dot(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    """Multiplies groups of rows in bfloat16."""
    return lax.ragged_dot(x, w.astype(x.dtype), sizes)


def fp8_ragged_dot(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    """Multiplies groups of rows in FP8, forward and backward."""
    return fp8.ragged_dot(x, w, sizes, preferred_element_type=x.dtype)


def initialize(key: jax.Array, layers: int, width: int, experts: int) -> dict:
    """Returns the parameters, float32; those of all layers are stacked."""
    shapes = {
        "qkv": (layers, width, 3 * width),
        "out": (layers, width, width),
        "router": (layers, width, experts),
        "gate": (layers, experts, width, width),
        "up": (layers, experts, width, width),
        "down": (layers, experts, width, width),
    }
    keys = jax.random.split(key, len(shapes) + 1)
    blocks = {
        name: jax.random.normal(k, shape) * (2 * shape[-2]) ** -0.5
        for k, (name, shape) in zip(keys[1:], shapes.items(), strict=True)
    }
    blocks["bias"] = jnp.zeros((layers, experts))
    embedding = jax.random.normal(keys[0], (training.VOCABULARY, width)) * 0.05
    return {"embedding": embedding, "blocks": blocks}


def attention(x: jax.Array, w: dict) -> jax.Array:
    """Mixes earlier positions into each: (B, L, width)."""
    batch, length, width = x.shape
    heads = (x @ w["qkv"].astype(x.dtype)).reshape(batch, length, 3, width // HEAD, HEAD)
    q, k, v = heads[:, :, 0], heads[:, :, 1], heads[:, :, 2]
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return mixed.reshape(x.shape) @ w["out"].astype(x.dtype)


def moe(ragged_dot, x: jax.Array, w: dict) -> tuple[jax.Array, jax.Array]:
    """Sends each token to TOP experts and sums what they return: (T, width), and their loads."""
    scores = jax.nn.sigmoid(x.astype(jnp.float32) @ w["router"])
    _, chosen = lax.top_k(lax.stop_gradient(scores + w["bias"]), TOP)
    gates = jnp.take_along_axis(scores, chosen, 1)
    gates = gates / gates.sum(1, keepdims=True)

    def experts(rows, sizes):
        hidden = jax.nn.silu(ragged_dot(rows, w["gate"], sizes)) * ragged_dot(rows, w["up"], sizes)
        return ragged_dot(hidden, w["down"], sizes)

    y, load = expert_layer(experts, x, chosen, gates, scores.shape[1], AXIS)
    return y, lax.all_gather(load, AXIS, tiled=True)


def loss(ragged_dot, parameters: dict, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean cross entropy of each next byte, and the load of each layer's experts."""

    def block(x, w):
        x = x + attention(training.normalize(x), w)
        y, load = moe(ragged_dot, training.normalize(x).reshape(-1, x.shape[-1]), w)
        # Its gradient for the bias is the sign of the load that is too much; its value is 0.
        balance = jnp.sum((w["bias"] - lax.stop_gradient(w["bias"])) * jnp.sign(load - load.mean()))
        return x + y.reshape(x.shape), (load, balance)

    x = parameters["embedding"][tokens[:, :-1]].astype(jnp.bfloat16)
    x, (load, balance) = lax.scan(block, x, parameters["blocks"])
    logits = (training.normalize(x) @ parameters["embedding"].T.astype(x.dtype)).astype(jnp.float32)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()
    return lax.pmean(cross_entropy + balance.sum(), AXIS), lax.pmean(load, AXIS)


def main() -> None:
    """Trains twice and compares."""
    jax.config.update("jax_num_cpu_devices", 4)  # stand for GPUs where there are none
    options = training.arguments(
        __doc__.splitlines()[0], steps=80, batch=8, length=64, width=256, layers=2, experts=8
    )
    data = training.batches(options.steps, options.batch, options.length)
    unseen = training.batches(20, options.batch, options.length, unseen=True)
    parameters = initialize(jax.random.key(0), options.layers, options.width, options.experts)

    mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    blocks = {n: P(None, AXIS) if n in EXPERT_WEIGHTS else P() for n in parameters["blocks"]}
    specs = {"embedding": P(), "blocks": blocks}
    parameters = jax.tree.map(
        lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec)), parameters, specs
    )
    kinds = {"embedding": "adam", "blocks": {n: "bias" if n == "bias" else "adam" for n in blocks}}
    balance = optax.sgd(optax.linear_schedule(0.05, 0.001, options.steps))
    optimizer = optax.multi_transform(
        {"adam": training.adam(options.steps), "bias": balance}, kinds
    )
    runs = {}
    for name, dot in (("bfloat16", bfloat16_ragged_dot), ("FP8", fp8_ragged_dot)):
        sharded_loss = jax.shard_map(
            functools.partial(loss, dot), mesh=mesh, in_specs=(specs, P(AXIS)), out_specs=P()
        )
        trained, losses, final = training.train(
            lambda p, t, f=sharded_loss: f(p, t)[0], parameters, optimizer, data, unseen, name
        )
        runs[name] = losses, final
        load = sum(jax.jit(sharded_loss)(trained, tokens)[1] for tokens in unseen)
        busiest = (load.max(1) / load.mean(1)).max()
        print(f"{name:>9}: the busiest expert has {busiest:.2f} times the mean load")
    training.compare("A mixture of experts", options.out / "05_moe.png", runs)


if __name__ == "__main__":
    main()
