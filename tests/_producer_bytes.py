# SPDX-License-Identifier: Apache-2.0
"""Counts what quantizing costs in memory traffic, with and without what comes before it.

Usage: python tests/_producer_bytes.py OUTPUT.json

Compiles programs for an H100 ahead of time and adds up the bytes of operands and results of every
kernel in them. Prints the table of docs/models.md.
"""

import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from _hlo import parse_module
from _quantizers import of_two
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

TOKENS, COLUMNS = 4096, 7168
BYTES = {"u8": 1, "f8e4m3fn": 1, "bf16": 2, "f32": 4, "u32": 4, "s32": 4}
_RESULT = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) [a-z][\w\-]*\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def norm(x, weight):
    """An RMS norm, rounded to the dtype of x."""
    wide = x.astype(jnp.float32)
    roots = jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)
    return (wide * roots * weight.astype(jnp.float32)).astype(x.dtype)


def behind_residual(quantized_norm):
    """Returns what adds a residual first, and returns that sum too."""

    def both(x, residual, weight):
        return x + residual, quantized_norm(x + residual, weight)

    return both


def norm_apart(x, weight):
    """The norm as an array."""
    return fp8.quantize(norm(x, weight))


def norm_fused(x, weight):
    """The norm on the way into the quantizer."""
    return fp8.quantize(fp8.rms_norm(x, weight))


def two_layouts(dy):
    """The gradient that arrives, along rows and along tokens."""
    return fp8.quantize(dy), fp8.quantize_transposed(dy)


# What is quantized: in XLA's kernels and ours, and on the way into ours.
PROGRAMS = {
    "swiglu": (
        lambda gate, up: fp8.quantize(jax.nn.silu(gate) * up),
        lambda gate, up: fp8.quantize(fp8.swiglu(gate, up)),
        2 * [(TOKENS, COLUMNS)],
    ),
    "swiglu, gate and up in one array": (
        lambda h: fp8.quantize(jax.nn.silu(h[:, :COLUMNS]) * h[:, COLUMNS:]),
        lambda h: fp8.quantize(fp8.swiglu(h)),
        [(TOKENS, 2 * COLUMNS)],
    ),
    "gelu": (
        lambda x: fp8.quantize(jax.nn.gelu(x)),
        lambda x: fp8.quantize(fp8.gelu(x)),
        [(TOKENS, COLUMNS)],
    ),
    "rms_norm": (norm_apart, norm_fused, [(TOKENS, COLUMNS), (COLUMNS,)]),
    "rms_norm of a sum that is written too": (
        behind_residual(norm_apart),
        behind_residual(norm_fused),
        [*2 * [(TOKENS, COLUMNS)], (COLUMNS,)],
    ),
    "gradient, along rows and tokens": (
        two_layouts,
        lambda dy: of_two("rows_and_transposed", dy),
        [(TOKENS, COLUMNS)],
    ),
}


def size_of(shapes: str) -> int:
    """Returns the bytes of all shapes in a text."""
    total = 0
    for dtype, dims in _SHAPE.findall(shapes):
        size = BYTES[dtype]
        for extent in filter(None, dims.split(",")):
            size *= int(extent)
        total += size
    return total


def traffic(text: str) -> int:
    """Returns what the kernels of a program read and write, in bytes."""
    sizes = {}
    for line in text.splitlines():
        if match := _RESULT.match(line):
            sizes[match[1]] = size_of(match[2])
    total = 0
    for kernel in parse_module(text).kernels():
        operands = re.findall(r"%([\w.\-]+)", kernel.text.partition(")")[0])
        total += sizes[kernel.name] + sum(sizes[name] for name in operands)
    return total


def measure(f, shapes, device) -> float:
    """Returns the bytes that a program moves, per element of what it quantizes."""
    mesh = jax.sharding.Mesh([device], "d")
    like = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P()))
        for shape in shapes
    ]
    return traffic(jax.jit(f).lower(*like).compile().as_text()) / (TOKENS * COLUMNS)


def main() -> None:
    """Writes the bytes of each program, and prints the table."""
    target = (Path(__file__).parent / "h100.txtpb").read_text()
    options = {"topology": "1x1x1", "target_config": target}
    device = topologies.get_topology_desc(platform="cuda", **options).devices[0]
    results = {}
    print("| quantized | as an array first | on the way | of it |\n|---|---|---|---|")
    for name, (apart, fused, shapes) in PROGRAMS.items():
        results[name] = [measure(f, shapes, device) for f in (apart, fused)]
        before, after = results[name]
        print(f"| {name} | {before:.2f} | {after:.2f} | {after / before:.2f} |")
    Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
