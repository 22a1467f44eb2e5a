# SPDX-License-Identifier: Apache-2.0
"""A layer of experts divided among devices, for use under jax.shard_map.

Each device holds some tokens and some experts. Rows travel to the devices of their experts and
back; between the two each device multiplies its groups with `ragged_dot`. No row is dropped.
On a GPU rows travel by `jax.lax.ragged_all_to_all`, which sends those that there are. XLA has none
for the CPU; there every pair of devices exchanges as many rows as one device has, by
`jax.lax.all_to_all`. Both are differentiable, and both give the same sums.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def expert_layer(
    experts: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    chosen: jax.Array,
    gates: jax.Array,
    num_experts: int,
    axis: str,
    *,
    travel: Callable | None = None,
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
        axis: Mesh axis that tokens and experts are divided over.
        travel: How rows travel: `by_ragged_all_to_all`, `by_all_to_all`, or None for what the
            platform has.

    Returns:
        `(T, width)` sums in the dtype of `x`, and the load of this device's experts, in rows.
    """
    devices, rows, top = lax.axis_size(axis), chosen.size, chosen.shape[1]
    per_device = num_experts // devices
    is_expert = (chosen >= 0) & (chosen < num_experts)
    chosen = jnp.where(is_expert, chosen, num_experts)  # past all experts, where nothing is sent
    gates = jnp.where(is_expert, gates, 0)

    # Rows sorted by expert are sorted by device.
    order = jnp.argsort(chosen.reshape(-1))
    counts = jnp.bincount(chosen.reshape(-1), length=num_experts).astype(jnp.int32)
    counts = counts.reshape(devices, per_device)
    sent = counts.sum(1)
    given = lax.all_to_all(counts, axis, 0, 0)  # rows of each device for each expert of this one
    traffic = lax.all_gather(sent, axis)  # rows from each device to each
    received, starts = _by_platform(travel, 0, x[order // top], traffic, axis)

    # Sorted by expert again, what nobody sent last: the groups of ragged_dot.
    ends = starts[:, None] + jnp.cumsum(given, 1)
    borders = jnp.stack([ends - given, ends], -1).reshape(-1)
    segment = jnp.searchsorted(borders, jnp.arange(devices * rows), side="right")
    expert = jnp.where(segment % 2 == 1, segment // 2 % per_device, per_device)
    by_expert, load = jnp.argsort(expert), given.sum(0)
    outputs = experts(received[by_expert], load)

    outputs = jnp.zeros_like(outputs).at[by_expert].set(outputs)
    returned = _by_platform(travel, 1, outputs, traffic, axis)[:rows]
    weighted = returned * gates.reshape(-1)[order][:, None].astype(x.dtype)
    return jnp.zeros_like(x).at[order // top].add(weighted), load


def _by_platform(travel, direction: int, rows: jax.Array, traffic: jax.Array, axis: str):
    def go(how):
        return lambda rows, traffic: how[direction](rows, traffic, axis)

    if travel is not None:
        return go(travel)(rows, traffic)
    choices = {"cuda": go(by_ragged_all_to_all), "default": go(by_all_to_all)}
    return lax.platform_dependent(rows, traffic, **choices)


def _starts(sizes: jax.Array, dimension: int = 0) -> jax.Array:
    return jnp.cumsum(sizes, dimension) - sizes


# ---- Two ways to travel. `traffic[i, j]` is the number of rows from device i to device j ---------


def _ragged_there(rows: jax.Array, traffic: jax.Array, axis: str) -> tuple[jax.Array, jax.Array]:
    """Sends rows sorted by device; returns what came, back to back, and where each part starts."""
    me = lax.axis_index(axis)
    room = jnp.zeros_like(rows, shape=(len(traffic) * len(rows), rows.shape[1]))
    sizes, at = (traffic[me], traffic[:, me]), _starts(traffic)[me]
    received = lax.ragged_all_to_all(
        rows, room, _starts(sizes[0]), sizes[0], at, sizes[1], axis_name=axis
    )
    return received, _starts(sizes[1])


def _ragged_back(rows: jax.Array, traffic: jax.Array, axis: str) -> jax.Array:
    """Returns rows to where they came from, in the order in which they left."""
    me = lax.axis_index(axis)
    sizes, at = (traffic[:, me], traffic[me]), _starts(traffic, 1)[:, me]
    room = jnp.zeros_like(rows, shape=(len(rows) // len(traffic), rows.shape[1]))
    return lax.ragged_all_to_all(
        rows, room, _starts(sizes[0]), sizes[0], at, sizes[1], axis_name=axis
    )


def _slots(traffic: jax.Array, count: int, axis: str) -> tuple[jax.Array, jax.Array]:
    """Returns device and place of each row that leaves, where each device has room for all."""
    sizes = traffic[lax.axis_index(axis)]
    device = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(count), side="right")
    return device, jnp.arange(count) - _starts(sizes)[device]


def _padded_there(rows: jax.Array, traffic: jax.Array, axis: str) -> tuple[jax.Array, jax.Array]:
    room = jnp.zeros_like(rows, shape=(len(traffic), *rows.shape))
    sent = room.at[_slots(traffic, len(rows), axis)].set(rows)
    received = lax.all_to_all(sent, axis, 0, 0).reshape(-1, rows.shape[1])
    starts = lax.axis_index(axis) * 0 + len(rows) * jnp.arange(len(traffic), dtype=traffic.dtype)
    return received, starts


def _padded_back(rows: jax.Array, traffic: jax.Array, axis: str) -> jax.Array:
    count = len(rows) // len(traffic)
    returned = lax.all_to_all(rows.reshape(len(traffic), count, -1), axis, 0, 0)
    return returned[_slots(traffic, count, axis)]


by_ragged_all_to_all = _ragged_there, _ragged_back
by_all_to_all = _padded_there, _padded_back
