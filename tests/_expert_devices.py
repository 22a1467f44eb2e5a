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
AXIS, DEVICES = "y", 4


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


def _in_fp8(rows):
    """Rounds rows as they are rounded to be sent in FP8."""
    return fp8.quantize(rows, scale_format="pow2").dequantize()


@jax.custom_vjp
def rounded(rows):
    return _in_fp8(rows)


@jax.custom_vjp
def with_rounded_gradients(rows):
    return rows


rounded.defvjp(lambda rows: (_in_fp8(rows), None), lambda _, gradient: (gradient,))
with_rounded_gradients.defvjp(lambda rows: (rows, None), lambda _, gradient: (_in_fp8(gradient),))


def exact(product, x, w, chosen, gates, return_fp8=False):
    """Every token by each of its experts, on one device; what is no expert comes last."""
    chosen = np.where((chosen >= 0) & (chosen < G), chosen, G).reshape(-1)
    order = np.argsort(chosen, kind="stable")
    sizes = np.bincount(chosen, minlength=G)[:G].astype(np.int32)
    sent = x[order // TOP]
    rows = product(with_rounded_gradients(sent) if return_fp8 else sent, w, sizes)
    rows = (rounded(rows) if return_fp8 else rows) * gates.reshape(-1)[order][:, None]
    return jnp.zeros((len(x), w.shape[2])).at[order // TOP].add(rows)


def _routes():
    """Returns the experts of each token, and the weight of each."""
    rng = np.random.default_rng(20)
    chosen = rng.integers(0, G, (T, TOP)).astype(np.int32)
    chosen[: T // 4] = 3, 5  # a device whose tokens all have the same experts
    chosen[chosen == 6] = 0  # an expert without tokens
    chosen[T // 2 :: 5, 0], chosen[T // 2 :: 7, 1] = -1, G + 3  # none, and one that there is not
    chosen[-3] = -1  # a token without experts
    return chosen, rng.random((T, TOP)).astype(np.float32)


def _places(chosen) -> list[list[int]]:
    """Returns, of each device, the tokens of the rows that it is sent, in the order of senders."""
    device = np.where((chosen >= 0) & (chosen < G), chosen // (G // DEVICES), DEVICES)
    in_order = np.argsort(chosen.reshape(DEVICES, -1), axis=1, kind="stable")
    rows = (in_order + np.arange(DEVICES)[:, None] * (T * TOP // DEVICES)).reshape(-1)
    to = device.reshape(-1)[rows]
    return [list(rows[to == d] // TOP) for d in range(DEVICES)]


def _layer(product, travel, max_rows, x, w, chosen, gates, **options):
    experts = lambda rows, sizes: product(rows, w, sizes)  # noqa: E731
    options = {"max_rows": max_rows, "travel": travel, **options}
    return expert_parallel.expert_layer(experts, x, chosen, gates, G, AXIS, **options)


def expert_programs():
    """Yields a layer of experts over "y", its value and gradients, for each way to travel."""
    chosen, gates = _routes()
    x, w, dy = normal(21, T, K), normal(22, G, K, K) / K**0.5, normal(23, T, K)
    # Just enough for the device that is sent the most, which is less than everything.
    enough = max(map(len, _places(chosen)))
    assert enough < T * TOP

    def layer(product, travel, options, *operands):
        return _layer(product, travel, enough, *operands, **options)[0]

    def gradients(f, x, w, gates):
        y, pull = jax.vjp(lambda x, w, gates: f(x, w, chosen, gates), x, w, gates)
        return y, *pull(dy)

    def program(*options):
        f = functools.partial(layer, *options)
        return jax.shard_map(f, mesh=MESHES[AUTO], in_specs=P(AXIS), out_specs=P(AXIS))

    by_all_to_all = expert_parallel.by_all_to_all
    by_ragged_all_to_all = expert_parallel.by_ragged_all_to_all
    pow2 = functools.partial(fp8.ragged_dot, recipe=fp8.Recipe(scale_format="pow2"))
    rows, results = {"send_fp8": True}, {"return_fp8": True}
    both = {**rows, "send_gradients_fp8": True}
    for name, product, travel, options in (
        ("float32, all-to-all", lax.ragged_dot, by_all_to_all, {}),
        ("float32, ragged all-to-all", lax.ragged_dot, by_ragged_all_to_all, {}),
        ("FP8", fp8.ragged_dot, None, {}),
        ("FP8 rows", fp8.ragged_dot, None, rows),
        ("FP8 rows, ragged all-to-all", fp8.ragged_dot, by_ragged_all_to_all, rows),
        ("FP8 both ways", pow2, None, both),
        ("FP8 both ways, ragged all-to-all", pow2, by_ragged_all_to_all, both),
        ("FP8 results", lax.ragged_dot, None, results),
        ("FP8 rows and results", fp8.ragged_dot, None, {**rows, **results}),
        ("FP8 results, ragged all-to-all", lax.ragged_dot, by_ragged_all_to_all, results),
    ):

        def run(product=product, travel=travel, options=options):
            operands = [put(AUTO, each, P(AXIS)) for each in (x, w, gates)]
            on_one = functools.partial(exact, product, return_fp8="return_fp8" in options)
            want = gradients(on_one, x, w, gates)
            if options == both:  # the bits of gradients that travel as they are
                unsent = functools.partial(gradients, program(product, None, rows))
                want = jax.jit(unsent)(*operands)
            f = functools.partial(gradients, program(product, travel, options))
            with emulated() if travel else contextlib.nullcontext():
                return measure(f, operands, jax.device_get(want))

        yield MANUAL, f"experts, {name}", run


def full_expert_programs():
    """Yields a layer whose experts are sent more rows than there is room for."""
    chosen, gates = _routes()
    x, w = normal(21, T, K), normal(22, G, K, K) / K**0.5
    places = _places(chosen)
    room = sorted(map(len, places))[1] - 3  # too little for three devices of four
    lost = sorted({token for each in places for token in each[room:]})
    assert len(lost) > 3 and {token for each in places for token in each[:room]} - set(lost)
    want = exact(lax.ragged_dot, x, w, chosen, gates).at[np.array(lost)].set(0)
    is_lost = np.zeros(T, np.float32)
    is_lost[lost] = 1
    load = np.bincount(chosen[(chosen >= 0) & (chosen < G)], minlength=G)

    def layer(travel, *operands):
        y, load = _layer(lax.ragged_dot, travel, room, *operands)
        is_nan = jnp.isnan(y)
        return jnp.where(is_nan, 0, y), is_nan.mean(1, dtype=jnp.float32), load

    for name, travel in (
        ("all-to-all", expert_parallel.by_all_to_all),
        ("ragged all-to-all", expert_parallel.by_ragged_all_to_all),
    ):

        def run(travel=travel):
            operands = [put(AUTO, each, P(AXIS)) for each in (x, w, chosen, gates)]
            f = functools.partial(layer, travel)
            mapped = jax.shard_map(f, mesh=MESHES[AUTO], in_specs=P(AXIS), out_specs=P(AXIS))
            with emulated():
                return measure(mapped, operands, jax.device_get((want, is_lost, load)))

        yield MANUAL, f"experts without room, {name}", run


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
