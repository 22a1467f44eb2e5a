# SPDX-License-Identifier: Apache-2.0
"""dot, dot_general and ragged_dot under jax.checkpoint: each policy gives what none gives."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_fp8gemm as fp8

NAMES = ("fp8_activation", "fp8_weight")
POLICIES = jax.checkpoint_policies
EACH_POLICY = {
    "none": None,
    "both": POLICIES.save_only_these_names(*NAMES),
    "activation": POLICIES.save_only_these_names("fp8_activation"),
    "weight": POLICIES.save_only_these_names("fp8_weight"),
    "everything": POLICIES.everything_saveable,
    "all_but": POLICIES.save_anything_except_these_names("another"),
    "dots": POLICIES.dots_saveable,
    "offload": POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(NAMES),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}

M, K, N, G = 12, 256, 136, 3
x, dy = cases.normal((M, K), seed=0), cases.normal((M, N), seed=1)
matrix, experts = cases.normal((K, N), seed=2), cases.normal((G, K, N), seed=3)
sizes = jnp.asarray([5, 0, 6], jnp.int32)
NUMBERS = (((1,), (0,)), ((), ()))


def quantized(w):
    """Returns a weight that is given no gradient."""
    return jax.lax.stop_gradient(fp8.quantize(jnp.swapaxes(w, -1, -2), (128, 128)))


LAYERS = {
    "dot": (fp8.dot, matrix),
    "scanned_dot": (lambda x, w: jax.lax.map(lambda row: fp8.dot(row[None], w), x)[:, 0], matrix),
    "dot_general": (lambda x, w: fp8.dot_general(x, w, NUMBERS), matrix),
    "ragged_dot": (lambda x, w: fp8.ragged_dot(x, w, sizes), experts),
    "quantized_dot": (lambda x, w: fp8.dot(x, quantized(w)), matrix),
    "quantized_ragged_dot": (lambda x, w: fp8.ragged_dot(x, quantized(w), sizes), experts),
}


REST = ("scanned_dot", "ragged_dot", "quantized_dot", "quantized_ragged_dot")


@functools.cache
def value_and_gradients(name, *checkpoint):
    """Returns loss and gradients of a layer, under `jax.checkpoint` where a policy is named."""
    layer, w = LAYERS[name]

    def loss(x, w):
        return (jax.nn.gelu(layer(jnp.tanh(x), w)) * dy).sum()

    for policy in checkpoint:
        loss = jax.checkpoint(loss, policy=EACH_POLICY[policy])
    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(x, w))


@pytest.mark.sampled(10)
@pytest.mark.parametrize(
    ("name", "policy"),
    [
        *(("dot", policy) for policy in EACH_POLICY),
        ("dot_general", "both"),
        *((name, policy) for name in REST for policy in ("both", "everything")),
    ],
)
def test_policies_change_no_number(name, policy):
    got, want = value_and_gradients(name, policy), value_and_gradients(name)
    for a, b in zip(got, want, strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("policy", ["none", "both", "everything"])
def test_policies_change_no_bit_of_residual_blocks_in_bfloat16(policy):
    """What is saved is rounded; what is not, XLA could compute with more digits."""
    width = 384
    weights = [
        cases.normal(shape, seed=i, dtype=jnp.bfloat16) / 16
        for i, shape in enumerate([(K, width), (K, width), (width, K)])
    ]
    tokens = cases.normal((M, K), seed=3, dtype=jnp.bfloat16)

    def layer(weights, x):
        gate, up, down = weights
        return x + fp8.dot(jax.nn.silu(fp8.dot(x, gate)) * fp8.dot(x, up), down)

    def gradients(layer):
        loss = lambda w, x: (layer(w, layer(w, x)).astype(jnp.float32) ** 2).mean()  # noqa: E731
        return jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(weights, tokens))

    got = gradients(jax.checkpoint(layer, policy=EACH_POLICY[policy]))
    for a, b in zip(got, gradients(layer), strict=True):
        np.testing.assert_array_equal(a, b)
