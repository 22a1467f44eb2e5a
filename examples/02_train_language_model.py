# SPDX-License-Identifier: Apache-2.0
"""A byte-level language model in plain JAX, trained in bfloat16 and in FP8 on real text.

The model is a transformer. Its linear layers take the function that multiplies; everything else is
the same in both runs: the seed, the batches, the optimizer, and float32 master weights.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import training

import jax_fp8gemm as fp8

HEAD = 64  # width of an attention head


def bfloat16_dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies in bfloat16."""
    return x @ w.astype(x.dtype)


def fp8_dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies in FP8, forward and backward: the one difference between the runs."""
    return fp8.dot(x, w, preferred_element_type=x.dtype)


def initialize(key: jax.Array, layers: int, width: int) -> dict:
    """Returns the parameters, float32; the matrices of all layers are stacked."""
    shapes = {
        "qkv": (layers, width, 3 * width),
        "out": (layers, width, width),
        "up": (layers, width, 4 * width),
        "down": (layers, 4 * width, width),
    }
    keys = jax.random.split(key, len(shapes) + 1)
    blocks = {
        name: jax.random.normal(k, shape) * (2 * shape[1]) ** -0.5
        for k, (name, shape) in zip(keys[1:], shapes.items(), strict=True)
    }
    embedding = jax.random.normal(keys[0], (training.VOCABULARY, width)) * 0.05
    return {"embedding": embedding, "blocks": blocks}


def rotate(x: jax.Array) -> jax.Array:
    """Rotates pairs of channels by the position: rotary embeddings of (B, L, H, D)."""
    length, half = x.shape[1], x.shape[-1] // 2
    angles = jnp.arange(length)[:, None] * 10_000.0 ** -(jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None].astype(x.dtype), jnp.sin(angles)[:, None].astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def block(dot, x: jax.Array, w: dict) -> jax.Array:
    """Attention and an MLP, each added to what comes in: (B, L, width)."""
    batch, length, width = x.shape
    heads = dot(training.normalize(x), w["qkv"]).reshape(batch, length, 3, width // HEAD, HEAD)
    q, k, v = heads[:, :, 0], heads[:, :, 1], heads[:, :, 2]
    mixed = jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
    x = x + dot(mixed.reshape(x.shape), w["out"])
    return x + dot(jax.nn.gelu(dot(training.normalize(x), w["up"])), w["down"])


def loss(dot, parameters: dict, tokens: jax.Array) -> jax.Array:
    """Returns the mean cross entropy of each next byte."""
    x = parameters["embedding"][tokens[:, :-1]].astype(jnp.bfloat16)
    x, _ = jax.lax.scan(lambda x, w: (block(dot, x, w), None), x, parameters["blocks"])
    embedding = parameters["embedding"].astype(x.dtype)
    logits = jnp.dot(training.normalize(x), embedding.T, preferred_element_type=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def main() -> None:
    """Trains twice and compares."""
    options = training.arguments(
        __doc__.splitlines()[0], steps=120, batch=8, length=128, width=256, layers=2
    )
    data = training.batches(options.steps, options.batch, options.length)
    unseen = training.batches(20, options.batch, options.length, unseen=True)
    parameters = initialize(jax.random.key(0), options.layers, options.width)
    runs = {}
    for name, dot in (("bfloat16", bfloat16_dot), ("FP8", fp8_dot)):
        _, losses, final = training.train(
            functools.partial(loss, dot),
            parameters,
            training.adam(options.steps),
            data,
            unseen,
            name,
        )
        runs[name] = losses, final
    training.compare(
        "A byte-level transformer on the Python standard library",
        options.out / "02_train_language_model.png",
        runs,
    )


if __name__ == "__main__":
    main()
