# SPDX-License-Identifier: Apache-2.0
"""A layer of experts sharded among devices, for use under jax.shard_map.

Each device holds some tokens and some experts. Rows travel to the devices of their experts and
back; between the two each device multiplies its groups with `ragged_dot`. No row is dropped
silently: where a device is sent more rows than it may make room for, sums that lack one are NaN.
On a GPU rows travel by `jax.lax.ragged_all_to_all`, which sends those that there are. XLA has none
for the CPU; there every pair of devices exchanges as many rows as one device has, by
`jax.lax.all_to_all`. Both give the same sums, and gradients go back the way that rows came. Rows
may travel to the experts in FP8, as `ragged_dot` would quantize them: half the bytes of bfloat16,
and the same sums. So may, with scales that are powers of two, the gradients of what the experts
return. What comes back to the tokens may travel in FP8 too, rounded once.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import jax_fp8gemm as fp8


class Traffic(NamedTuple):
    """How many rows go from each device (first index) to each."""

    wanted: jax.Array
    fitting: jax.Array  # of them, the first ones: those that have room


class Route(NamedTuple):
    """How rows travel. Known while tracing, unlike how many do."""

    axis: str
    rows: int  # that a device sends
    room: int  # for those that it is sent
    travel: tuple[Callable, Callable] | None


def expert_layer(
    experts: Callable[..., jax.Array],
    x: jax.Array,
    chosen: jax.Array,
    gates: jax.Array,
    num_experts: int,
    axis: str,
    *,
    max_rows: int | None = None,
    send_fp8: bool = False,
    send_gradients_fp8: bool = False,
    return_fp8: bool = False,
    travel: tuple[Callable, Callable] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Sends every token to its experts and adds up what they return, weighted by its gates.

    Args:
        experts: `experts(rows, group_sizes)`: this device's experts on rows `(R, width)` sorted by
            expert, as `ragged_dot` takes them; rows past the last group come back as zeros.
        x: `(T, width)` tokens of this device.
        chosen: `(T, top)` integers, the experts of each token, 0 to `num_experts - 1`; any other
            number, such as -1, is no expert: it adds 0 to the sum. Device i of n holds the experts
            from `i * num_experts / n` on.
        gates: `(T, top)` the weight of each.
        num_experts: On all devices together, a multiple of their number.
        axis: Mesh axis that tokens and experts are sharded over.
        max_rows: How many rows a device makes room for. In balance each is sent `T * top`; None
            makes room for those of all devices. Of more than that, those of the first devices fit.
            A sum that lacks a row is NaN, and the load says how much room was wanted.
        send_fp8: Whether rows are quantized before they are sent. `experts` gets them as a
            `QuantizedActivation`, which `ragged_dot` takes.
        send_gradients_fp8: Whether gradients of what the experts return are too. With
            `Recipe(scale_format="pow2")`, whose `ragged_dot` would quantize them likewise, that
            changes no number; with other gradients than in e4m3, or those of weights in bfloat16,
            it does.
        return_fp8: Whether what the experts return is quantized before it comes back, and so the
            gradients of rows: each is rounded to FP8 once, as nothing else would round it.
        travel: How rows travel: `by_ragged_all_to_all`, `by_all_to_all`, or None for what the
            platform has.

    Returns:
        `(T, width)` sums in the dtype of `x`, and the load of this device's experts: the rows that
        are for each, whether they fit or not.
    """
    devices, rows, top = lax.axis_size(axis), chosen.size, chosen.shape[1]
    per_device = num_experts // devices
    room = devices * rows if max_rows is None else min(devices * rows, max_rows)
    is_expert = (chosen >= 0) & (chosen < num_experts)
    chosen = jnp.where(is_expert, chosen, num_experts)  # past all experts, where nothing is sent
    gates = jnp.where(is_expert, gates, 0)

    # Rows sorted by expert are sorted by device.
    order = jnp.argsort(chosen.reshape(-1))
    counts = jnp.bincount(chosen.reshape(-1), length=num_experts).astype(jnp.int32)
    counts = counts.reshape(devices, per_device)
    sent = counts.sum(1)
    given = lax.all_to_all(counts, axis, 0, 0)  # rows of each device for each expert of this one
    wanted = lax.all_gather(sent, axis)
    traffic = Traffic(wanted, jnp.clip(room - _starts(wanted), 0, wanted))
    route = Route(axis, rows, room, travel)
    if send_fp8:
        received = _send_bits(x[order // top], traffic, route, return_fp8)
    else:
        received = _exchange(x[order // top], traffic, route, _THERE, False, return_fp8)

    # Sorted by expert again, what nobody sent last: the groups of ragged_dot.
    me = lax.axis_index(axis)
    came = traffic.fitting[:, me]
    ends = jnp.minimum(jnp.cumsum(given, 1), came[:, None])
    sizes = jnp.diff(ends, axis=1, prepend=0)
    borders = jnp.cumsum(sizes.reshape(-1))
    segment = jnp.searchsorted(borders, jnp.arange(room), side="right")
    expert = jnp.where(segment < sizes.size, segment % per_device, per_device)
    by_expert = jnp.argsort(expert)
    in_order = jax.tree.map(lambda each: each[by_expert], received)
    outputs = experts(in_order, sizes.sum(0))

    outputs = jnp.zeros_like(outputs).at[by_expert].set(outputs)
    returned = _exchange(outputs, traffic, route, _BACK, return_fp8, send_gradients_fp8)
    device, place = _slots(sent, rows)
    is_lost = (device < devices) & (place >= traffic.fitting[me, device])
    gates = jnp.where(is_lost, jnp.nan, gates.reshape(-1)[order])
    weighted = returned * gates[:, None].astype(x.dtype)
    return jnp.zeros_like(x).at[order // top].add(weighted), given.sum(0)


_THERE, _BACK = 0, 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _exchange(rows, traffic: Traffic, route: Route, direction: int, fp8_out: bool, fp8_back: bool):
    """Returns the rows that arrive; their gradients go back."""
    return _moved(rows, traffic, route, direction, fp8_out)


def _exchange_forward(rows, traffic, *static):
    return _exchange(rows, traffic, *static), traffic


def _exchange_backward(route, direction, fp8_out, fp8_back, traffic, gradient):
    return _moved(gradient, traffic, route, 1 - direction, fp8_back), None


_exchange.defvjp(_exchange_forward, _exchange_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _send_bits(rows: jax.Array, traffic: Traffic, route: Route, fp8_back: bool):
    """Returns bits and scales that arrive; their gradients go back to the rows, in their dtype."""
    bits = fp8.QuantizedActivation.quantize(rows).quantized
    nothing = jnp.zeros_like(rows, shape=(route.room, rows.shape[1]))
    return fp8.QuantizedActivation(nothing, _moved_bits(bits, traffic, route, _THERE))


def _send_bits_forward(rows, traffic, *static):
    return _send_bits(rows, traffic, *static), traffic


def _send_bits_backward(route, fp8_back, traffic, gradient):
    return _moved(gradient.array, traffic, route, _BACK, fp8_back), None


_send_bits.defvjp(_send_bits_forward, _send_bits_backward)


def _moved(rows, traffic: Traffic, route: Route, direction: int, in_fp8: bool) -> jax.Array:
    if not in_fp8:
        return _by_platform(rows, traffic, route, direction)
    bits = fp8.quantize(rows, scale_format="pow2")
    received = _moved_bits(bits, traffic, route, direction).dequantize()
    most = float(jnp.finfo(rows.dtype).max)  # a power of two above the largest float16 is past it
    return jnp.clip(received, -most, most).astype(rows.dtype)


def _moved_bits(bits: fp8.BlockScaled, *how) -> fp8.BlockScaled:
    leaves = (bits.values.view(jnp.uint8), bits.scales)
    values, scales = (_by_platform(each, *how) for each in leaves)
    return fp8.BlockScaled(values.view(bits.dtype), scales, bits.block)


def _by_platform(rows: jax.Array, traffic: Traffic, route: Route, direction: int):
    room = route.room if direction == _THERE else route.rows

    def go(how):
        return lambda rows, traffic: how[direction](rows, traffic, route.axis, room)

    if route.travel is not None:
        return go(route.travel)(rows, traffic)
    choices = {"cuda": go(by_ragged_all_to_all), "default": go(by_all_to_all)}
    return lax.platform_dependent(rows, traffic, **choices)


def _starts(sizes: jax.Array, dimension: int = 0) -> jax.Array:
    return jnp.cumsum(sizes, dimension) - sizes


# ---- Two ways to travel: rows sorted by device, back to back on both sides -----------------------


def _ragged_there(rows: jax.Array, traffic: Traffic, axis: str, room: int) -> jax.Array:
    """Sends rows, and returns those that came."""
    me = lax.axis_index(axis)
    return lax.ragged_all_to_all(
        rows,
        jnp.zeros_like(rows, shape=(room, rows.shape[1])),
        _starts(traffic.wanted[me]),
        traffic.fitting[me],
        _starts(traffic.fitting)[me],
        traffic.fitting[:, me],
        axis_name=axis,
    )


def _ragged_back(rows: jax.Array, traffic: Traffic, axis: str, room: int) -> jax.Array:
    """Returns rows to where they came from, in the order in which they left."""
    me = lax.axis_index(axis)
    return lax.ragged_all_to_all(
        rows,
        jnp.zeros_like(rows, shape=(room, rows.shape[1])),
        _starts(traffic.fitting[:, me]),
        traffic.fitting[:, me],
        _starts(traffic.wanted, 1)[:, me],
        traffic.fitting[me],
        axis_name=axis,
    )


def _slots(sizes: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns the device of each of `count` rows, and its place among those of this device."""
    device = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(count), side="right")
    return device, jnp.arange(count) - _starts(sizes)[device]


def _padded_there(rows: jax.Array, traffic: Traffic, axis: str, room: int) -> jax.Array:
    me = lax.axis_index(axis)
    parts = jnp.zeros_like(rows, shape=(lax.axis_size(axis), *rows.shape))
    parts = parts.at[_slots(traffic.wanted[me], len(rows))].set(rows)
    came = lax.all_to_all(parts, axis, 0, 0)
    return came.at[_slots(traffic.fitting[:, me], room)].get(mode="fill", fill_value=0)


def _padded_back(rows: jax.Array, traffic: Traffic, axis: str, room: int) -> jax.Array:
    me = lax.axis_index(axis)
    parts = jnp.zeros_like(rows, shape=(lax.axis_size(axis), room, rows.shape[1]))
    parts = parts.at[_slots(traffic.fitting[:, me], len(rows))].set(rows)
    returned = lax.all_to_all(parts, axis, 0, 0)
    return returned.at[_slots(traffic.wanted[me], room)].get(mode="fill", fill_value=0)


by_ragged_all_to_all = _ragged_there, _ragged_back
by_all_to_all = _padded_there, _padded_back
