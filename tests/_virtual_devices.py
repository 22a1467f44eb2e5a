# SPDX-License-Identifier: Apache-2.0
"""Meshes of 8 devices, and what programs on them compile to; for _devices.py and its parts."""

import collections
import contextlib
import json
import re

import jax
import jax.export
import numpy as np
from _tiers import in_sample
from jax.sharding import AxisType, NamedSharding

import jax_fp8gemm as fp8

COLLECTIVE = re.compile(
    r"\b(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
AUTO, EXPLICIT, MANUAL = "auto", "explicit", "manual"
MESHES = {
    kind: jax.make_mesh((2, 4), ("x", "y"), axis_types=(axis_type,) * 2)
    for kind, axis_type in ((AUTO, AxisType.Auto), (EXPLICIT, AxisType.Explicit))
}


def normal(seed: int, *shape: int) -> np.ndarray:
    """Returns normally distributed float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def put(kind: str, tree, spec):
    """Returns arrays divided as `spec` says; one PartitionSpec per leaf, or one for all."""
    specs = spec if isinstance(spec, list) else [spec] * len(jax.tree.leaves(tree))
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(
        jax.device_put(leaf, NamedSharding(MESHES[kind], s))
        for leaf, s in zip(leaves, specs, strict=True)
    )


def count_collectives(text: str) -> dict[str, int]:
    """Counts the collectives of optimized HLO."""
    return dict(collections.Counter(COLLECTIVE.findall(text)))


def relative(got, want) -> float:
    """Returns the relative distance of two trees of arrays."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    return max(
        float(np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b)) for a, b in pairs
    )


def measure(f, arguments, want, **options) -> dict:
    """Compiles, runs, and says what came out."""
    compiled = jax.jit(f, **options).lower(*arguments).compile()
    got = compiled(*arguments)
    return {
        "collectives": count_collectives(compiled.as_text()),
        "specs": [str(tuple(getattr(leaf.sharding, "spec", ()))) for leaf in jax.tree.leaves(got)],
        "error": relative(jax.device_get(got), want),
    }


def export_and_measure(f, arguments, want) -> dict:
    """Writes a jitted function for CPU and CUDA, reads it, and measures what was read."""
    written = jax.export.export(f, platforms=["cpu", "cuda"], disabled_checks=fp8.export_checks())(
        *arguments
    )
    read = jax.export.deserialize(bytearray(written.serialize()))
    result = measure(read.call, arguments, want)
    targets = re.findall(r"custom_call @(jax_fp8gemm[\w.]*)", read.mlir_module())
    return {**result, "targets": sorted(set(targets)), "devices": read.nr_devices}


def write_results(file: str, programs, period: int) -> None:
    """Runs one in `period` of the programs, and writes what came out; an error is a result."""
    results = {}
    for kind, name, run in programs:
        if not in_sample(f"{kind}: {name}", period):
            continue
        context = (kind == EXPLICIT and "without" not in name) or "ambient" in name
        mesh = MESHES[EXPLICIT if kind == EXPLICIT else AUTO]
        try:
            with jax.set_mesh(mesh) if context else contextlib.nullcontext():
                results[f"{kind}: {name}"] = run()
        except ValueError as error:
            results[f"{kind}: {name}"] = {"raised": str(error)}
    with open(file, "w") as output:
        json.dump(results, output, indent=1)
