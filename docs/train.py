# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Train
#
# A two-layer network learns what another one computes, once in bfloat16 and once in FP8. On a CPU
# the products run in plain JAX, with the numbers of the Hopper kernels but not their speed.
# The [examples](../examples/) train language models in the same way, with Flax NNX and Equinox too.

# %%
import functools

import jax
import jax.numpy as jnp

import jax_fp8gemm as fp8

tokens, width, hidden = 512, 256, 512
keys = jax.random.split(jax.random.key(0), 5)
x = jax.random.normal(keys[0], (tokens, width), jnp.bfloat16)


def initialize(key):
    up, down = jax.random.split(key)
    return {
        "up": jax.random.normal(up, (width, hidden)) * width**-0.5,
        "down": jax.random.normal(down, (hidden, width)) * hidden**-0.5,
    }


# %% [markdown]
# ## The model
#
# `fp8.dot` takes what a layer has: activations `(..., K)` and a weight `(K, N)` in any float. It
# quantizes both, and in the backward pass the gradient too, so that all three products of a layer
# run on float8. Everything else stays as it was. A layer is switched to FP8 by one name.


# %%
def network(dot, weights, x):
    h = jax.nn.silu(dot(x, weights["up"].astype(x.dtype)))
    return dot(h, weights["down"].astype(x.dtype))


targets = network(jnp.matmul, initialize(keys[1]), x)


def loss(dot, weights, x):
    return jnp.mean(jnp.square(network(dot, weights, x) - targets).astype(jnp.float32))


# %% [markdown]
# ## Train it, in bfloat16 and in FP8
#
# The loss of FP8 follows that of bfloat16.


# %%
@functools.partial(jax.jit, static_argnums=0)
def step(dot, weights, x):
    value, gradients = jax.value_and_grad(loss, argnums=1)(dot, weights, x)
    return value, jax.tree.map(lambda w, g: w - 10.0 * g, weights, gradients)


losses = {}
for name, dot in {"bfloat16": jnp.matmul, "FP8": fp8.dot}.items():
    weights = initialize(keys[2])
    losses[name] = []
    for _ in range(50):
        value, weights = step(dot, weights, x)
        losses[name].append(float(value))
print("step  bfloat16     FP8")
for i in (0, 1, 3, 10, 20, 49):
    print(f"{i:4}{losses['bfloat16'][i]:10.4f}{losses['FP8'][i]:8.4f}")
assert losses["FP8"][-1] < 0.2 * losses["FP8"][0]
assert abs(losses["FP8"][-1] / losses["bfloat16"][-1] - 1) < 0.1

# %% [markdown]
# ## What is quantized, and how
#
# Activations and gradients have one scale per 1x128, weights one per 128x128. Beside the float8
# values the scales add 3 % to activations and next to nothing to weights.

# %%
for name, array, block in (("activations", x, (1, 128)), ("weight", weights["up"].T, (128, 128))):
    quantized = fp8.quantize(array.astype(jnp.bfloat16), block)
    error = quantized.dequantize() - array.astype(jnp.float32)
    relative = jnp.linalg.norm(error) / jnp.linalg.norm(array.astype(jnp.float32))
    print(
        f"{name:12} values {quantized.values.dtype} {quantized.values.shape}, scales"
        f" {quantized.scales.shape}: {quantized.nbytes / array.size:.3f} bytes per element,"
        f" {relative:.2%} off"
    )

# %% [markdown]
# ## What the backward pass keeps
#
# Between the passes `dot` keeps the quantized operands and neither of the originals: half the bytes
# of bfloat16.

# %%
w = weights["up"].astype(jnp.bfloat16)
for name, dot in {"bfloat16": jnp.matmul, "FP8": fp8.dot}.items():
    _, backward = jax.vjp(dot, x, w)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(backward))
    print(f"{name:9}{kept / (x.size + w.size):.3f} bytes per element of the operands")

# %% [markdown]
# ## One quantized weight for many uses
#
# With microbatches a weight is read often between two steps. A `MasterWeight` holds it beside its
# quantized form, so that it is quantized once, and its gradients are those of the weight, in every
# bit.


# %%
def microbatched(w, x):
    parts = x.reshape(4, -1, x.shape[-1])
    return jax.lax.map(lambda part: fp8.dot(part, w).astype(jnp.float32).sum(), parts).sum()


plain = jax.jit(jax.grad(microbatched))(w, x)
once = jax.jit(jax.grad(lambda w, x: microbatched(fp8.MasterWeight.quantize(w), x)))(w, x)
print(f"gradients agree in every bit: {bool((plain == once).all())}")
assert (plain == once).all()

# %% [markdown]
# ## Other formats
#
# A `Recipe` says how gradients are quantized and in which dtype devices add up their parts, for one
# product or for all under `use_recipe`. Here weight gradients are computed in bfloat16.

# %%
recipe = fp8.Recipe(weight_gradient="bfloat16")
dots = {
    "float8": fp8.dot,
    "float8, weight gradients in bfloat16": functools.partial(fp8.dot, recipe=recipe),
}
gradient = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)
exact = gradient(jnp.matmul, initialize(keys[2]), x)["up"]
for name, dot in dots.items():
    error = jnp.linalg.norm(gradient(dot, initialize(keys[2]), x)["up"] - exact)
    print(f"{name:37}{error / jnp.linalg.norm(exact):.1%} from bfloat16")
