# SPDX-License-Identifier: Apache-2.0
"""DeepSeek-style inference: a mixture-of-experts checkpoint in FP8, prefill, then decoding.

The example trains a small model in bfloat16, writes it as DeepSeek-V3 is stored (safetensors with
float8 weights and `weight_scale_inv`) and loads that. Prefill has many tokens, sorted by expert,
and uses `grouped_gemm`; decoding has few, in static shapes, and uses `grouped_gemm_masked`.
"""

import functools
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import optax
import training
from jax import lax

import jax_fp8gemm as fp8

LAYERS, EXPERTS, TOP, HEAD = 2, 8, 2, 64


def initialize(key: jax.Array, width: int) -> dict[str, jax.Array]:
    """Returns the parameters under their names in a checkpoint, float32; experts are stacked."""
    shapes = {"model.embed_tokens.weight": (training.VOCABULARY, width)}
    shapes["lm_head.weight"] = (training.VOCABULARY, width)
    for i in range(LAYERS):
        for name in "qkvo":
            shapes[f"model.layers.{i}.self_attn.{name}_proj.weight"] = (width, width)
        shapes[f"model.layers.{i}.mlp.gate.weight"] = (EXPERTS, width)
        for name in ("gate", "up", "down"):
            shapes[f"model.layers.{i}.mlp.experts.{name}_proj.weight"] = (EXPERTS, width, width)
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, shape) * (2 * width) ** -0.5
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


# ---- What multiplies: bfloat16 for training, FP8 for inference ----------------------------------


def bfloat16_linear(x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies (..., K) by (N, K)."""
    return x @ w.T.astype(x.dtype)


def fp8_linear(x: jax.Array, w: fp8.BlockScaled) -> jax.Array:
    """Multiplies (..., K) by (N, K) as the checkpoint has it."""
    return fp8.gemm(fp8.quantize(x.reshape(-1, x.shape[-1])), w).reshape(*x.shape[:-1], -1)


def bfloat16_groups(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    """Multiplies groups of rows, back to back, each by its expert."""
    return lax.ragged_dot(x, w.swapaxes(1, 2).astype(x.dtype), sizes)


def fp8_groups(x: jax.Array, w: fp8.BlockScaled, sizes: jax.Array) -> jax.Array:
    """Multiplies groups of rows, back to back, each by its expert."""
    return fp8.grouped_gemm(fp8.quantize(x), w, sizes)


def sorted_experts(multiply, x, chosen, gates, w: dict) -> jax.Array:
    """Runs the experts on tokens sorted by expert, for many tokens: (T, width)."""
    order = jnp.argsort(chosen.reshape(-1))
    sizes = jnp.bincount(chosen.reshape(-1), length=EXPERTS)
    rows = x[order // TOP]
    hidden = jax.nn.silu(multiply(rows, w["gate"], sizes)) * multiply(rows, w["up"], sizes)
    out = multiply(hidden, w["down"], sizes) * gates.reshape(-1)[order][:, None].astype(x.dtype)
    return jnp.zeros_like(x).at[order // TOP].add(out)


def masked_experts(x, chosen, gates, w: dict) -> jax.Array:
    """Runs the experts on slots of static shape, for few tokens: (T, width)."""
    expert = chosen.reshape(-1)
    is_expert = (expert[:, None] == jnp.arange(EXPERTS)).astype(jnp.int32)
    counts = is_expert.sum(0)
    slot = expert, jnp.take_along_axis(jnp.cumsum(is_expert, 0) - 1, expert[:, None], 1)[:, 0]
    room = jnp.zeros((EXPERTS, len(x), x.shape[1]), x.dtype)  # for all tokens in every expert

    def multiply(x, w):
        likely = -(-len(expert) // EXPERTS)
        rows = fp8.quantize(x, masked_m=counts)
        return fp8.grouped_gemm_masked(rows, w, counts, expected_m=likely)

    inputs = room.at[slot].set(jnp.repeat(x, TOP, 0))
    hidden = jax.nn.silu(multiply(inputs, w["gate"])) * multiply(inputs, w["up"])
    out = multiply(hidden, w["down"])[slot].reshape(*chosen.shape, -1)
    return jnp.sum(out * gates[..., None].astype(x.dtype), 1)


# ---- The model ----------------------------------------------------------------------------------


def forward(linear, experts, weights: dict, tokens: jax.Array, cache: jax.Array, start):
    """Returns logits (B, L, 256) of tokens from position `start` on, and the cache with them."""
    batch, length = tokens.shape
    positions = jnp.arange(cache.shape[3])
    mask = positions <= start + jnp.arange(length)[:, None]
    x = weights["model.embed_tokens.weight"][tokens].astype(jnp.bfloat16)
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        y = training.normalize(x)
        attention = {name: weights[f"{layer}self_attn.{name}_proj.weight"] for name in "qkvo"}
        q, k, v = (linear(y, attention[n]).reshape(batch, length, -1, HEAD) for n in "qkv")
        cache = lax.dynamic_update_slice(cache, jnp.stack([k, v])[None], (i, 0, 0, start, 0, 0))
        mixed = jax.nn.dot_product_attention(q, *cache[i], mask=mask[None, None])
        x = x + linear(mixed.reshape(x.shape), attention["o"])

        y = training.normalize(x).reshape(-1, x.shape[-1])
        scores = jax.nn.sigmoid(y @ weights[f"{layer}mlp.gate.weight"].T.astype(y.dtype))
        gates, chosen = lax.top_k(scores.astype(jnp.float32), TOP)
        gates = gates / gates.sum(1, keepdims=True)
        names = ("gate", "up", "down")
        w = {name: weights[f"{layer}mlp.experts.{name}_proj.weight"] for name in names}
        x = x + experts(y, chosen, gates, w).reshape(x.shape)
    return bfloat16_linear(training.normalize(x), weights["lm_head.weight"]).astype(
        jnp.float32
    ), cache


def new_cache(batch: int, length: int, width: int) -> jax.Array:
    """Returns room for the keys and values of `length` positions in every layer."""
    return jnp.zeros((LAYERS, 2, batch, length, width // HEAD, HEAD), jnp.bfloat16)


def loss(linear, experts, weights: dict, tokens: jax.Array) -> jax.Array:
    """Returns the mean cross entropy of each next byte."""
    batch, length = tokens[:, 1:].shape
    width = weights["lm_head.weight"].shape[1]
    cache = new_cache(batch, length, width)
    logits, _ = forward(linear, experts, weights, tokens[:, :-1], cache, 0)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def write_checkpoint(folder: pathlib.Path, parameters: dict[str, jax.Array]) -> None:
    """Quantizes the linear layers and writes everything in the Hugging Face format."""
    tensors = {
        name: fp8.quantize(w, (128, 128)) if "_proj." in name else w.astype(jnp.bfloat16)
        for name, w in parameters.items()
    }
    fp8.checkpoint.save(folder, tensors, config={"model_type": "tiny_moe"}, max_file_bytes=10**6)
    files = sorted(folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    before = sum(2 * w.size for w in parameters.values())
    print(f"checkpoint: {len(files)} files, {size / 1e6:.2f} MB, {before / 1e6:.2f} in bfloat16")


def main() -> None:
    """Trains, writes, loads, and continues text that the model has not seen."""
    options = training.arguments(
        __doc__.splitlines()[0], steps=100, batch=8, length=64, width=256, generate=64
    )
    data = training.batches(options.steps, options.batch, options.length)
    unseen = training.batches(20, options.batch, options.length, unseen=True)
    bfloat16_experts = functools.partial(sorted_experts, bfloat16_groups)
    prefill_experts = functools.partial(sorted_experts, fp8_groups)
    parameters, _, reference = training.train(
        functools.partial(loss, bfloat16_linear, bfloat16_experts),
        initialize(jax.random.key(0), options.width),
        training.adam(options.steps),
        data,
        unseen,
        "bfloat16",
    )
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(pathlib.Path(folder), parameters)
        weights = fp8.checkpoint.load(folder)

    score = jax.jit(functools.partial(loss, fp8_linear, prefill_experts))
    final = sum(float(score(weights, tokens)) for tokens in unseen) / len(unseen)
    print(f"loss on unseen text: bfloat16 {reference:.4f}, FP8 checkpoint {final:.4f}")

    prefill = jax.jit(functools.partial(forward, fp8_linear, prefill_experts))
    decode = jax.jit(functools.partial(forward, fp8_linear, masked_experts), donate_argnums=2)
    prompt = jnp.asarray(unseen[0][:, : options.length])
    cache = new_cache(len(prompt), options.length + options.generate, options.width)
    logits, cache = prefill(weights, prompt, cache, 0)
    tokens = [prompt, jnp.argmax(logits[:, -1:], -1)]
    for i in training.progress(range(options.generate - 1), "decode"):
        logits, cache = decode(weights, tokens[-1], cache, options.length + i)
        tokens.append(jnp.argmax(logits, -1))

    text = jnp.concatenate(tokens, 1)
    empty = new_cache(len(text), text.shape[1], options.width)
    again = jnp.argmax(prefill(weights, text, empty, 0)[0], -1)[:, options.length - 1 : -1]
    same = float(jnp.mean(again == text[:, options.length :]))
    print(f"bytes that decoding and prefill agree on: {same:.1%}")
    print(bytes(text[0].astype(jnp.uint8)).decode(errors="replace"))
    if abs(final / reference - 1) > training.MAX_DIFFERENCE or same < 0.9:
        sys.exit("FP8 differs by more than it should.")


if __name__ == "__main__":
    main()
