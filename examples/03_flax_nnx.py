# SPDX-License-Identifier: Apache-2.0
"""A byte-level transformer in Flax NNX, trained in bfloat16 and, with one argument more, in FP8.

`flax.nnx.Linear` takes the function that multiplies as `dot_general`.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import training
from flax import nnx

import jax_fp8gemm as fp8

HEAD = 64  # width of an attention head


class Block(nnx.Module):
    """Attention and an MLP, each added to what comes in."""

    def __init__(self, width: int, dot_general, rngs: nnx.Rngs):
        """Makes the layers; float32 parameters, bfloat16 activations."""
        linear = functools.partial(
            nnx.Linear, use_bias=False, dtype=jnp.bfloat16, dot_general=dot_general, rngs=rngs
        )
        self.norm1 = nnx.RMSNorm(width, dtype=jnp.bfloat16, rngs=rngs)
        self.norm2 = nnx.RMSNorm(width, dtype=jnp.bfloat16, rngs=rngs)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, L, width) to (B, L, width)."""
        batch, length, width = x.shape
        heads = self.qkv(self.norm1(x)).reshape(batch, length, 3, width // HEAD, HEAD)
        q, k, v = heads[:, :, 0], heads[:, :, 1], heads[:, :, 2]
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.down(jax.nn.gelu(self.up(self.norm2(x))))


class LanguageModel(nnx.Module):
    """Bytes in, logits of the next byte out."""

    def __init__(self, layers: int, width: int, length: int, dot_general, rngs: nnx.Rngs):
        """Makes the layers; the embeddings are bfloat16 in both runs."""
        embed = functools.partial(nnx.Embed, features=width, dtype=jnp.bfloat16, rngs=rngs)
        self.bytes, self.positions = embed(training.VOCABULARY), embed(length)
        self.blocks = nnx.List([Block(width, dot_general, rngs) for _ in range(layers)])
        self.norm = nnx.RMSNorm(width, dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps (B, L) to (B, L, 256)."""
        x = self.bytes(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.bytes.attend(self.norm(x)).astype(jnp.float32)


def main() -> None:
    """Trains twice and compares."""
    options = training.arguments(
        __doc__.splitlines()[0], steps=100, batch=8, length=128, width=256, layers=2
    )
    data = training.batches(options.steps, options.batch, options.length)
    unseen = training.batches(20, options.batch, options.length, unseen=True)
    runs = {}
    for name, dot_general in (("bfloat16", jax.lax.dot_general), ("FP8", fp8.dot_general)):
        model = LanguageModel(
            options.layers, options.width, options.length, dot_general, nnx.Rngs(0)
        )
        graph, parameters = nnx.split(model)

        def loss(parameters, tokens, graph=graph):
            logits = nnx.merge(graph, parameters)(tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        _, losses, final = training.train(
            loss, parameters, training.adam(options.steps), data, unseen, name
        )
        runs[name] = losses, final
    file = options.out / "03_flax_nnx.png"
    training.compare("A transformer in Flax NNX", file, runs)


if __name__ == "__main__":
    main()
