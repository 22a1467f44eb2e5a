# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Serve
#
# A checkpoint in the format of DeepSeek-V3 is loaded as it is stored, in FP8, and one of its layers
# of experts runs with the shapes of prefill and of decoding. On a CPU the products run in plain
# JAX; which kernels a Hopper GPU would run, the heuristics say on any machine.
# [One example](../examples/) does the same with a whole model, attention and sampling included.

# %%
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp

import jax_fp8gemm as fp8

experts, top, width, hidden = 8, 2, 512, 256

# %% [markdown]
# ## A checkpoint
#
# A real one comes from elsewhere; here is a small one with the same names: safetensors with float8
# weights, and beside each of them its `weight_scale_inv`, one number per block of 128x128.

# %%
folder = pathlib.Path(tempfile.mkdtemp())
prefix = "model.layers.0.mlp.experts."
shapes = {"gate": (hidden, width), "up": (hidden, width), "down": (width, hidden)}
tensors = {}
for i, (name, shape) in enumerate(shapes.items()):
    w = jax.random.normal(jax.random.key(i), (experts, *shape)) * shape[1] ** -0.5
    tensors[f"{prefix}{name}_proj.weight"] = fp8.quantize(w, (128, 128))
fp8.checkpoint.save(folder, tensors, config={"model_type": "tiny_moe"})
for file in sorted(folder.iterdir()):
    print(f"{file.name:36}{file.stat().st_size:9} bytes")

# %% [markdown]
# ## Load it
#
# `load` reads the float8 values and the scales as they are, stacks the experts of a layer, and puts
# them on the device, or on a sharding that it is given. No weight is ever widened.

# %%
loaded = fp8.checkpoint.load(folder)
weights = {name: loaded[f"{prefix}{name}_proj.weight"] for name in shapes}
for name, w in weights.items():
    print(f"{name:5}{type(w).__name__} {w.shape} {w.values.dtype}, scales {w.scales.shape}")

# %% [markdown]
# ## Prefill: many tokens, sorted by expert
#
# Each token goes to two experts. Sorted by expert, the rows of one expert lie back to back, and
# `ragged_dot` multiplies each group by the weight of its expert. How many rows a group has is known
# to the device only: nothing is padded, and nothing is compiled again when the numbers change.


# %%
@jax.jit
def prefill(x, chosen, gates, weights):
    order = jnp.argsort(chosen.reshape(-1))
    sizes = jnp.bincount(chosen.reshape(-1), length=experts)
    rows = fp8.QuantizedActivation.quantize(x[order // top])  # once, for two products
    gate, up = (fp8.ragged_dot(rows, weights[name], sizes) for name in ("gate", "up"))
    out = fp8.ragged_dot(fp8.swiglu(gate, up), weights["down"], sizes)
    out = out * gates.reshape(-1)[order][:, None].astype(out.dtype)
    return jnp.zeros_like(x).at[order // top].add(out)


def route(key, tokens):
    gates, chosen = jax.lax.top_k(jax.random.uniform(key, (tokens, experts)), top)
    return chosen, gates / gates.sum(1, keepdims=True)


x = jax.random.normal(jax.random.key(3), (384, width), jnp.bfloat16)
chosen, gates = route(jax.random.key(4), len(x))
y = prefill(x, chosen, gates, weights)
print(y.shape, y.dtype, "rows of each expert:", jnp.bincount(chosen.reshape(-1), length=experts))

# %% [markdown]
# The same in float32, with weights that are dequantized for the purpose, differs by the rounding of
# activations.


# %%
def reference(x, chosen, gates):
    w = {name: weight.dequantize() for name, weight in weights.items()}
    x = x.astype(jnp.float32)
    h = jax.nn.silu(jnp.einsum("tk,enk->ten", x, w["gate"])) * jnp.einsum("tk,enk->ten", x, w["up"])
    every = jnp.einsum("ten,ekn->tek", h, w["down"])
    picked = jnp.take_along_axis(every, chosen[..., None], 1)
    return (picked * gates[..., None]).sum(1)


def check(y, *arguments):
    exact = reference(*arguments)
    error = jnp.linalg.norm(y.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
    print(f"{error:.2%} off")
    assert error < 0.06


check(y, x, chosen, gates)

# %% [markdown]
# ## Decode: few tokens, static shapes
#
# With one token per sequence each expert gets a handful of rows. `grouped_gemm_masked` has room for
# as many rows in each expert as there are tokens, and a count of those that are valid: the rows
# behind them cost nothing.


# %%
@jax.jit
def decode(x, chosen, gates, weights):
    expert = chosen.reshape(-1)
    is_expert = (expert[:, None] == jnp.arange(experts)).astype(jnp.int32)
    counts = is_expert.sum(0)
    place = jnp.take_along_axis(jnp.cumsum(is_expert, 0) - 1, expert[:, None], 1)[:, 0]
    room = jnp.zeros((experts, len(x), width), x.dtype)
    rows = fp8.quantize(room.at[expert, place].set(jnp.repeat(x, top, 0)), masked_m=counts)

    def multiply(rows, name):
        return fp8.grouped_gemm_masked(rows, weights[name], counts, expected_m=2)

    products = fp8.swiglu(multiply(rows, "gate"), multiply(rows, "up"))
    out = multiply(fp8.quantize(products, masked_m=counts), "down")[expert, place]
    return jnp.sum(out.reshape(*chosen.shape, -1) * gates[..., None].astype(x.dtype), 1)


x = jax.random.normal(jax.random.key(5), (8, width), jnp.bfloat16)
chosen, gates = route(jax.random.key(6), len(x))
y = decode(x, chosen, gates, weights)
check(y, x, chosen, gates)

# %% [markdown]
# ## Which kernels would run
#
# `plan` ranks the configurations for a problem by a model of the H100, here with the extents of
# DeepSeek-V3: 7168 columns, 32 experts on a device, their gate and up projections as one matrix of
# 4096 rows. The times are modelled, not measured.

# %%
problems = {
    "prefill, experts": dict(m=8192, n=4096, k=7168, kind="ragged", num_groups=32),
    "decode, experts": dict(m=128, n=4096, k=7168, kind="masked", num_groups=32, expected_m=16),
    "prefill, dense": dict(m=4096, n=7168, k=2048),
    "decode, dense": dict(m=64, n=7168, k=2048),
}
for name, problem in problems.items():
    best = fp8.plan(**problem, num_sms=132)[0]
    print(f"{name:17} {best['config']:52}{best['microseconds']:7.1f} us, modelled")

# %% [markdown]
# The command line says why: what bounds the kernel, and what the next best ones would cost.

# %%
command = "-m jax_fp8gemm explain 64x7168x2048 --top 3 --num-sms 132 --no-code"
print("python", command)
explained = subprocess.run(
    [sys.executable, *command.split()], capture_output=True, text=True, check=True
)
print(explained.stdout, explained.stderr)
