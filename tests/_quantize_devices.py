# SPDX-License-Identifier: Apache-2.0
"""Programs of _devices.py that quantize, divided among 8 devices."""

import jax
import numpy as np
from _virtual_devices import AUTO, EXPLICIT, MANUAL, MESHES, measure, normal, put
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

M, N, K = 256, 1024, 1024
SIZES = np.asarray([300, 0, 212, 500], np.int32)


def rows(x):
    """Activations."""
    return jax.tree.leaves(fp8.quantize(x))


def square(x):
    """Weights."""
    return jax.tree.leaves(fp8.quantize(x, (128, 128)))


def transposed(x):
    """What weight gradients read."""
    return jax.tree.leaves(fp8.quantize_transposed(x))


def k_grouped(x):
    """What the weight gradients of experts read."""
    return jax.tree.leaves(fp8.quantize_k_grouped(x, SIZES))


QUANTIZATIONS = {
    "rows": (rows, P("x")),
    "rows and columns": (rows, P("x", "y")),
    "columns": (rows, P(None, "y")),
    "square, rows": (square, P("x")),
    "square, rows and columns": (square, P("x", "y")),
    "transposed, rows and columns": (transposed, P("x", "y")),
    "k_grouped, columns": (k_grouped, P(None, "y")),
    "k_grouped, rows": (k_grouped, P("x")),
    "square, a block split": (square, P("y")),
    "transposed, a block split": (transposed, P("y")),
}
# By hand, where the devices' blocks are those of one device.
QUANTIZED_BY_HAND = {
    "rows and columns": P("x", "y"),
    "square, rows and columns": P("x", "y"),
    "transposed, rows and columns": P("y", "x"),
    "k_grouped, columns": P("y"),
}


def quantize_programs():
    """Yields a name and a measurement for each division of each quantizer."""
    x, narrow = normal(3, N, K), normal(3, M, K)
    for kind in (AUTO, EXPLICIT, MANUAL):
        for name, (f, spec) in QUANTIZATIONS.items():
            if kind == MANUAL and name not in QUANTIZED_BY_HAND:
                continue

            def run(kind=kind, name=name, f=f, spec=spec):
                given = narrow if "split" in name else x
                want = [np.asarray(leaf, np.float32) for leaf in f(given)]
                if kind == MANUAL:
                    kind, out = AUTO, [QUANTIZED_BY_HAND[name]] * 2
                    f = jax.shard_map(f, mesh=MESHES[AUTO], in_specs=spec, out_specs=out)
                return measure(f, (put(kind, given, spec),), want)

            yield kind, f"quantize {name}", run
