# SPDX-License-Identifier: Apache-2.0
"""A byte-level MLP-mixer in Equinox, trained in bfloat16 and, its linear layers swapped, in FP8.

A layer here takes any leading dimensions, rather than one vector under `jax.vmap`: the gradient of
its weight is then one product over all tokens.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import training

import jax_fp8gemm as fp8


class Linear(eqx.Module):
    """Multiplies in the dtype of its input."""

    weight: jax.Array  # (out, in), as in eqx.nn.Linear

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., in) to (..., out)."""
        return x @ self.weight.T.astype(x.dtype)


class Fp8Linear(Linear):
    """Multiplies in FP8, forward and backward."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., in) to (..., out)."""
        return fp8.dot(x, self.weight.T, preferred_element_type=x.dtype)


def with_fp8(model: eqx.Module) -> eqx.Module:
    """Returns the model with every linear layer replaced; parameters stay."""

    def is_linear(node):
        return isinstance(node, Linear)

    def replace(node):
        return Fp8Linear(node.weight) if is_linear(node) else node

    return jax.tree.map(replace, model, is_leaf=is_linear)


class Block(eqx.Module):
    """Mixes earlier positions into each, then channels."""

    mixer: jax.Array  # (groups, L): weight of each lag, for each group of channels
    gate: Linear
    up: Linear
    down: Linear

    def __init__(self, width: int, length: int, key: jax.Array):
        """Draws the parameters."""
        keys = jax.random.split(key, 4)
        lags = jnp.arange(1, length + 1)
        self.mixer = jax.random.normal(keys[0], (32, length)) / lags
        shapes = ((4 * width, width), (4 * width, width), (width, 4 * width))
        self.gate, self.up, self.down = (
            Linear(jax.random.normal(k, shape) * (2 * shape[1]) ** -0.5)
            for k, shape in zip(keys[1:], shapes, strict=True)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, L, width) to (B, L, width)."""
        lags = jnp.arange(x.shape[1])[:, None] - jnp.arange(x.shape[1])
        mixer = jnp.where(lags >= 0, self.mixer[:, lags], 0).astype(x.dtype)
        groups = training.normalize(x).reshape(*x.shape[:2], len(mixer), -1)
        x = x + jnp.einsum("glm,bmgc->blgc", mixer, groups).reshape(x.shape)
        y = training.normalize(x)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))


class LanguageModel(eqx.Module):
    """Bytes in, logits of the next byte out."""

    embedding: jax.Array
    blocks: list[Block]

    def __init__(self, layers: int, width: int, length: int, key: jax.Array):
        """Draws the parameters."""
        first, *keys = jax.random.split(key, layers + 1)
        self.embedding = 0.05 * jax.random.normal(first, (training.VOCABULARY, width))
        self.blocks = [Block(width, length, key) for key in keys]

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps (B, L) to (B, L, 256)."""
        x = self.embedding[tokens].astype(jnp.bfloat16)
        for block in self.blocks:
            x = block(x)
        return (training.normalize(x) @ self.embedding.T.astype(x.dtype)).astype(jnp.float32)


def main() -> None:
    """Trains twice and compares."""
    options = training.arguments(
        __doc__.splitlines()[0], steps=100, batch=8, length=128, width=256, layers=2
    )
    data = training.batches(options.steps, options.batch, options.length)
    unseen = training.batches(20, options.batch, options.length, unseen=True)
    model = LanguageModel(options.layers, options.width, options.length, jax.random.key(0))
    runs = {}
    for name, variant in (("bfloat16", model), ("FP8", with_fp8(model))):
        parameters, static = eqx.partition(variant, eqx.is_inexact_array)

        def loss(parameters, tokens, static=static):
            logits = eqx.combine(parameters, static)(tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        _, losses, final = training.train(
            loss, parameters, training.adam(options.steps), data, unseen, name
        )
        runs[name] = losses, final
    training.compare("An MLP-mixer in Equinox", options.out / "04_equinox.png", runs)


if __name__ == "__main__":
    main()
