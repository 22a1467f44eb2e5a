# SPDX-License-Identifier: Apache-2.0
"""Measures what devices exchange in a layer that is trained.

Usage: python tests/_traffic.py OUTPUT.json [h100] [LAYOUT...]

Two residual layers of two products under jax.lax.scan and jax.checkpoint, which saves nothing, on 8
devices: in bfloat16 as `x @ w`, and in FP8. Counts the bytes that a device sends in both passes of
one layer, in the program that XLA compiled: for 8 H100s ahead of time with the argument "h100",
else for 8 virtual CPU devices (XLA_FLAGS=--xla_force_host_platform_device_count=8), which send
bfloat16 as float32. Of rows that travel to experts, those in balance count. Prints the table of
docs/sharding.md.
"""

import collections
import contextlib
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

import expert_parallel  # noqa: E402

DEVICES, LAYERS = 8, 2
BATCH, TOKENS, HIDDEN = 8, 256, 2048
AXIS = "d"
KINDS = ("auto", "explicit", "manual")


class Layout(NamedTuple):
    """Division of the activations between products, of the two weights, and the model's width."""

    outside: P
    inside: P
    first: P
    second: P
    width: int = 1024
    recipe: fp8.Recipe = fp8.Recipe()
    experts: tuple[int, ...] = ()
    kinds: tuple[str, ...] = KINDS


_ROWS, _TOKENS, _COLUMNS = P(AXIS), P(None, AXIS), P(None, None, AXIS)
_PARALLEL = Layout(_TOKENS, _COLUMNS, P(None, AXIS), P(AXIS))
# Rows of experts belong to any device: by jax.shard_map only.
_EXPERTS = Layout(_ROWS, _ROWS, P(AXIS), P(AXIS), experts=(DEVICES,), kinds=("manual",))
_POW2 = fp8.Recipe(scale_format="pow2")  # with which gradients travel in FP8 too
_SUMS = fp8.Recipe(scale_format="pow2", reduce_dtype=jnp.float8_e4m3fn)  # and sums
LAYOUTS = {
    "data parallel": Layout(_ROWS, _ROWS, P(), P()),
    "FSDP, along K": Layout(_ROWS, _ROWS, P(AXIS), P(AXIS)),
    "FSDP, along the output": Layout(_ROWS, _ROWS, P(None, AXIS), P(None, AXIS)),
    # 64 of the 512 rows of the first weight are half a block.
    "FSDP, blocks cut": Layout(_ROWS, _ROWS, P(AXIS), P(AXIS), width=512),
    "tensor parallel": _PARALLEL._replace(outside=P()),
    "tensor and sequence parallel": _PARALLEL,
    "tensor and sequence parallel, pow2": _PARALLEL._replace(recipe=_POW2),
    "expert parallel": _EXPERTS,
    "expert parallel, pow2": _EXPERTS._replace(recipe=_POW2),
}
_SUMMED_BY_JAX = ("data parallel", "tensor parallel")  # under jax.shard_map
# With sums in FP8 too, and what experts return.
LAYOUTS |= {
    f"{name}, FP8 sums": layout._replace(
        recipe=_SUMS, kinds=KINDS[:2] if name in _SUMMED_BY_JAX else layout.kinds
    )
    for name, layout in LAYOUTS.items()
    if layout.recipe == fp8.Recipe()
}
BYTES = {
    "u8": 1,
    "s8": 1,
    "f8e4m3fn": 1,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "u32": 4,
    "s32": 4,
    "s64": 8,
}
# What a device sends of the bytes of a result, among n devices.
SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(SENT)})(-start)?\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")


def in_bfloat16(x, w, out_sharding=None):
    """The product to compare with."""
    return jnp.einsum("btk,kn->btn", x, w, out_sharding=out_sharding)


PRODUCTS = {"bfloat16": in_bfloat16, "fp8": fp8.dot}


def gradients(layer, constrain):
    """Returns a function of the weights and x that returns the gradients of the weights."""

    def loss(weights, x):
        body = jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable)
        x, _ = jax.lax.scan(body, constrain(x), weights)
        return (x.astype(jnp.float32) ** 2).sum()

    return jax.grad(loss)


def step(product, layout: Layout, explicit: bool):
    """Returns a step in a mesh whose compiler, or types, divide what is computed."""
    constrain = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint

    def to(x, w, spec):
        return constrain(product(x, w, out_sharding=spec if explicit else None), spec)

    def layer(x, weights):
        first, second = (w.astype(jnp.bfloat16) for w in weights)
        h = to(x, first, layout.inside)
        return constrain(x + to(jax.nn.gelu(h), second, layout.outside), layout.outside), None

    return gradients(layer, lambda x: constrain(x, layout.outside))


def manual_step(product, layout: Layout, mesh):
    """Returns a step under jax.shard_map, with the collectives by hand."""

    def gathered(x, spec, kind):
        if AXIS not in spec:
            return x
        axis = tuple(spec).index(AXIS)
        if product is in_bfloat16:
            return jax.lax.all_gather(x, AXIS, axis=axis, tiled=True)
        return kind.all_gather(x, AXIS, axis=axis)

    def divided_rows(x, weights):
        first = gathered(weights[0], layout.first, fp8.MasterWeight)
        second = gathered(weights[1], layout.second, fp8.MasterWeight)
        return product(jax.nn.gelu(product(x, first)), second)

    def divided_columns(x, weights):
        x = gathered(x, layout.outside, fp8.QuantizedActivation)
        y = product(jax.nn.gelu(product(x, weights[0])), weights[1])
        if AXIS not in layout.outside:
            return jax.lax.psum(y, AXIS)
        axis = tuple(layout.outside).index(AXIS)
        if product is in_bfloat16:
            return jax.lax.psum_scatter(y, AXIS, scatter_dimension=axis, tiled=True)
        return fp8.psum_scatter(y, AXIS, scatter_dimension=axis)

    def layer(x, weights):
        function = divided_rows if layout.inside == layout.outside else divided_columns
        return x + function(x, [w.astype(jnp.bfloat16) for w in weights]), None

    weight_specs = [P(None, *spec) for spec in (layout.first, layout.second)]
    return mapped(layer, mesh, weight_specs, layout.outside)


def experts_step(product, layout: Layout, mesh):
    """Returns a step with a layer of experts, one for each device, two of which each token has."""
    multiply = jax.lax.ragged_dot if product is in_bfloat16 else fp8.ragged_dot

    def layer(x, weights):
        first, second = (w.astype(jnp.bfloat16) for w in weights)
        rows = x.reshape(-1, x.shape[-1])
        count = len(rows)
        chosen = jnp.arange(2 * count, dtype=jnp.int32).reshape(count, 2) % DEVICES
        y, _ = expert_parallel.expert_layer(
            lambda rows, sizes: multiply(jax.nn.gelu(multiply(rows, first, sizes)), second, sizes),
            rows,
            chosen,
            jnp.full(chosen.shape, 0.5, x.dtype),
            DEVICES,
            AXIS,
            max_rows=chosen.size,
            send_fp8=product is not in_bfloat16,
            send_gradients_fp8=product is not in_bfloat16 and layout.recipe in (_POW2, _SUMS),
            return_fp8=product is not in_bfloat16 and layout.recipe == _SUMS,
        )
        return x + y.reshape(x.shape), None

    return mapped(layer, mesh, [P(None, AXIS)] * 2, layout.outside)


def mapped(layer, mesh, weight_specs: list[P], outside: P):
    """Returns the gradients of a layer under jax.shard_map."""
    return jax.shard_map(
        gradients(layer, lambda x: x),
        mesh=mesh,
        in_specs=(weight_specs, outside),
        out_specs=weight_specs,
    )


def sent(text: str) -> dict[str, int]:
    """Returns the bytes that a device sends in the loops of a program, by what sends them."""
    totals: collections.Counter = collections.Counter()
    inside_loop = False
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            inside_loop = not match[1]
        match = _COLLECTIVE.search(line)
        if not match or not inside_loop:
            continue
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
        if match[3]:  # the operands come first
            shapes = shapes[len(shapes) // 2 :]
        for dtype, dims in shapes:
            size = BYTES[dtype]
            for extent in filter(None, dims.split(",")):
                size *= int(extent)
            totals[f"{match[2]} {dtype}"] += round(size * SENT[match[2]](DEVICES))
    return dict(totals)


def measure(layout: Layout, kind: str, name: str, devices) -> dict[str, int]:
    """Compiles a step and returns what it sends."""
    explicit = kind == "explicit"
    types = (AxisType.Explicit if explicit else AxisType.Auto,)
    mesh = jax.sharding.Mesh(devices, (AXIS,), axis_types=types)

    def like(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    specs = [P(None, *spec) for spec in (layout.first, layout.second)]
    lead = (LAYERS, *layout.experts)
    shapes = ((*lead, layout.width, HIDDEN), (*lead, HIDDEN, layout.width))
    weights = [like(shape, jnp.float32, s) for shape, s in zip(shapes, specs, strict=True)]
    x = like((BATCH, TOKENS, layout.width), jnp.bfloat16, layout.outside)
    if kind == "manual":
        by_hand = experts_step if layout.experts else manual_step
        f, context = by_hand(PRODUCTS[name], layout, mesh), contextlib.nullcontext()
    else:
        f, context = step(PRODUCTS[name], layout, explicit), jax.set_mesh(mesh)
    options = {} if explicit else {"out_shardings": [NamedSharding(mesh, s) for s in specs]}
    with context, fp8.use_recipe(layout.recipe):
        compiled = jax.jit(f, **options).lower(weights, x).compile()
    return sent(compiled.as_text())


def table(results: dict[str, dict[str, int]]) -> str:
    """Returns what explicit meshes send, as a table; experts by hand."""
    columns = ["bfloat16", "FP8", "of it"]
    lines = [f"| {' | '.join(['sharding', *columns, 'gathered: bfloat16', *columns[1:]])} |"]
    lines.append("|---" * 7 + "|")
    for layout, (*_, kinds) in LAYOUTS.items():
        kind = "explicit" if "explicit" in kinds else "manual"
        both = [results[f"{kind}: {layout}: {name}"] for name in PRODUCTS]
        cells = [*_cells([sum(each.values()) for each in both]), *_cells(list(map(gathered, both)))]
        lines.append(f"| {layout} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gathered(sent: dict[str, int]) -> int:
    """Returns the bytes of operands that are gathered; the others are added up where they go."""
    return sum(count for name, count in sent.items() if name.startswith("all-gather"))


def _cells(both: list[int]) -> list[str]:
    if min(both) < 2**10:  # how many rows travel, or parts of sums in FP8
        return ["-"] * 3
    return [*(f"{count / 2**20:.2f}" for count in both), f"{both[1] / both[0]:.2f}"]


def main() -> None:
    """Writes what each program sends, or what it raised, and prints the table."""
    output, *rest = sys.argv[1:]
    devices = jax.devices()
    if "h100" in rest:
        target = (HERE / "h100.txtpb").read_text()
        options = {"topology": "1x1x8", "target_config": target}
        devices = topologies.get_topology_desc(platform="cuda", **options).devices
    chosen = [layout for layout in LAYOUTS if layout in rest] or LAYOUTS
    results = {
        f"{kind}: {layout}: {name}": measure(LAYOUTS[layout], kind, name, devices)
        for layout in chosen
        for kind in LAYOUTS[layout].kinds
        for name in PRODUCTS
    }
    Path(output).write_text(json.dumps(results, indent=1))
    if chosen is LAYOUTS:
        print(table(results))


if __name__ == "__main__":
    main()
