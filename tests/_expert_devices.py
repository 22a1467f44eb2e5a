# SPDX-License-Identifier: Apache-2.0
"""Programs of _devices.py with experts on 8 devices: examples/expert_parallel.py."""

import contextlib
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _virtual_devices import AUTO, MANUAL, MESHES, export_and_measure, measure, normal, put
from jax import lax
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import expert_parallel  # noqa: E402

G, TOP, T, K, N = 8, 2, 64, 256, 128
AXIS = "y"


def ragged_all_to_all(x, room, from_, sizes, to, _, *, axis_name):
    """What jax.lax.ragged_all_to_all does, by collectives that the CPU has."""
    me = lax.axis_index(axis_name)
    every = [lax.all_gather(each, axis_name) for each in (x, from_, sizes, to)]
    i = jnp.arange(len(x))
    for rows, start, size, target in zip(*every, strict=True):
        counts = i < size[me]
        source = jnp.where(counts, start[me] + i, len(x))
        place = jnp.where(counts, target[me] + i, len(room))
        room = room.at[place].set(rows.at[source].get(mode="fill", fill_value=0), mode="drop")
    return room


def exact(product, x, w, chosen, gates):
    """Every token by each of its experts, on one device; what is no expert comes last."""
    chosen = np.where((chosen >= 0) & (chosen < G), chosen, G).reshape(-1)
    order = np.argsort(chosen, kind="stable")
    sizes = np.bincount(chosen, minlength=G)[:G].astype(np.int32)
    rows = product(x[order // TOP], w, sizes) * gates.reshape(-1)[order][:, None]
    return jnp.zeros((len(x), w.shape[2])).at[order // TOP].add(rows)


def expert_programs():
    """Yields a layer of experts over "y", its value and gradients, for each way to travel."""
    rng = np.random.default_rng(20)
    chosen = rng.integers(0, G, (T, TOP)).astype(np.int32)
    chosen[: T // 4] = 3, 5  # a device whose tokens all have the same experts
    chosen[chosen == 6] = 0  # an expert without tokens
    chosen[T // 2 :: 5, 0], chosen[T // 2 :: 7, 1] = -1, G + 3  # none, and one that there is not
    chosen[-3] = -1  # a token without experts
    gates = rng.random((T, TOP)).astype(np.float32)
    x, w, dy = normal(21, T, K), normal(22, G, K, K) / K**0.5, normal(23, T, K)

    def layer(product, travel, x, w, chosen, gates):
        experts = lambda rows, sizes: product(rows, w, sizes)  # noqa: E731
        return expert_parallel.expert_layer(experts, x, chosen, gates, G, AXIS, travel=travel)[0]

    def gradients(f, x, w, gates):
        y, pull = jax.vjp(lambda x, w, gates: f(x, w, chosen, gates), x, w, gates)
        return y, *pull(dy)

    def program(product, travel):
        f = functools.partial(layer, product, travel)
        return jax.shard_map(f, mesh=MESHES[AUTO], in_specs=P(AXIS), out_specs=P(AXIS))

    for name, product, travel in (
        ("float32, all-to-all", lax.ragged_dot, expert_parallel.by_all_to_all),
        ("float32, ragged all-to-all", lax.ragged_dot, expert_parallel.by_ragged_all_to_all),
        ("FP8", fp8.ragged_dot, None),
    ):

        def run(product=product, travel=travel):
            want = gradients(functools.partial(exact, product), x, w, gates)
            operands = [put(AUTO, each, P(AXIS)) for each in (x, w, gates)]
            f = functools.partial(gradients, program(product, travel))
            with emulated() if travel else contextlib.nullcontext():
                return measure(f, operands, jax.device_get(want))

        yield MANUAL, f"experts, {name}", run


def exported_expert_programs():
    """Yields groups under shard_map that are written for CPU and CUDA, read again, and called."""
    weights = fp8.quantize(normal(24, G, N, K), (128, 128))
    slots, counts = normal(25, G, 16, K), np.arange(G, dtype=np.int32)

    def masked(x, w, counts):
        return fp8.grouped_gemm_masked(fp8.quantize(x), tuple(w), counts)

    def ragged(x, w, counts):
        gradient = jax.grad(lambda x: fp8.ragged_dot(x, w, counts).sum())
        return gradient(x.reshape(-1, K)).reshape(x.shape)

    for name, f, w in (
        ("grouped_gemm_masked", masked, jax.tree.leaves(weights)),
        ("gradient of ragged_dot", ragged, normal(26, G, K, N)),
    ):

        def run(f=f, w=w):
            mapped = jax.jit(
                jax.shard_map(f, mesh=MESHES[AUTO], in_specs=P(AXIS), out_specs=P(AXIS))
            )
            arguments = put(AUTO, slots, P(AXIS)), put(AUTO, w, P(AXIS)), put(AUTO, counts, P(AXIS))
            want = np.asarray(mapped(*arguments), np.float32)
            return export_and_measure(mapped, arguments, want)

        yield MANUAL, f"exported {name}", run


@contextlib.contextmanager
def emulated():
    """Puts the emulation in the place of what XLA does not have for the CPU."""
    real, lax.ragged_all_to_all = lax.ragged_all_to_all, ragged_all_to_all
    try:
        yield
    finally:
        lax.ragged_all_to_all = real
