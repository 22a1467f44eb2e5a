# SPDX-License-Identifier: Apache-2.0
"""FP8 in an existing bfloat16 model, here an MLP in Flax NNX that predicts bytes: five lines."""

import jax
import jax.numpy as jnp
import optax
import training
from flax import nnx

import jax_fp8gemm as fp8  # line 1


def use_fp8(model: nnx.Module) -> None:  # line 2
    """Lets every linear layer but the last multiply in FP8."""
    for _, layer in nnx.iter_modules(model):  # line 3
        if isinstance(layer, nnx.Linear) and layer is not model.head:  # line 4
            layer.dot_general = fp8.dot_general  # line 5


# ---- The existing model, its parameters and its training: nothing below knows of FP8 ------------


class Mlp(nnx.Module):
    """Predicts a byte from those before it."""

    def __init__(self, length: int, width: int, rngs: nnx.Rngs):
        """Makes the layers; float32 parameters, bfloat16 activations."""
        options = {"dtype": jnp.bfloat16, "rngs": rngs}
        self.bytes = nnx.Embed(training.VOCABULARY, 32, **options)
        self.first = nnx.Linear(32 * length, width, **options)
        self.hidden = nnx.List([nnx.Linear(width, width, **options) for _ in range(2)])
        self.norm = nnx.RMSNorm(width, **options)
        self.head = nnx.Linear(width, training.VOCABULARY, **options)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps (B, length) to (B, 256)."""
        x = jax.nn.gelu(self.first(self.bytes(tokens).reshape(len(tokens), -1)))
        for layer in self.hidden:
            x = x + jax.nn.gelu(layer(x))
        return self.head(self.norm(x)).astype(jnp.float32)


def main() -> None:
    """Trains the model as it was, and with the five lines."""
    options = training.arguments(
        __doc__.splitlines()[0], steps=200, batch=512, length=16, width=512
    )
    data = training.batches(options.steps, options.batch, options.length)
    unseen = training.batches(20, options.batch, options.length, unseen=True)
    runs = {}
    for name in ("bfloat16", "FP8"):
        model = Mlp(options.length, options.width, nnx.Rngs(0))
        if name == "FP8":
            use_fp8(model)
        graph, parameters = nnx.split(model)

        def loss(parameters, tokens, graph=graph):
            logits = nnx.merge(graph, parameters)(tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, -1]).mean()

        _, losses, final = training.train(
            loss, parameters, training.adam(options.steps), data, unseen, name
        )
        runs[name] = losses, final
    training.compare("An MLP in Flax NNX", options.out / "07_add_fp8_in_five_lines.png", runs)


if __name__ == "__main__":
    main()
