# SPDX-License-Identifier: Apache-2.0
"""Programs of _devices.py that quantize, divided among 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
from _virtual_devices import AUTO, EXPLICIT, MANUAL, MESHES, measure, normal, put
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

M, N, K = 256, 1024, 1024
SIZES = np.asarray([300, 0, 212, 500], np.int32)


def rows(x):
    """Activations."""
    return fp8.quantize(x)


def square(x):
    """Weights."""
    return fp8.quantize(x, (128, 128))


def transposed(x):
    """What weight gradients read."""
    return fp8.quantize_transposed(x)


def k_grouped(x):
    """What the weight gradients of experts read."""
    return fp8.quantize_k_grouped(x, SIZES)


def swiglu(x):
    """An activation on the way."""
    return fp8.quantize(fp8.swiglu(x, jnp.cos(x)))


def rms_norm(x):
    """A norm on the way, whose rows may be those of several devices."""
    return fp8.quantize(fp8.rms_norm(x, 1 + jnp.arange(K) / K), scale_format="pow2")


def valid(x):
    """Rows of groups, the last of which are none."""
    return fp8.quantize(x, group_sizes=SIZES[:3])


QUANTIZATIONS = {
    "swiglu, rows and columns": (swiglu, P("x", "y")),
    "rms_norm, rows": (rms_norm, P("x")),
    "rms_norm, rows and columns": (rms_norm, P("x", "y")),
    "valid rows, rows and columns": (valid, P("x", "y")),
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
    "swiglu, rows and columns": P("x", "y"),
    "rms_norm, rows": P("x"),
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
                want = jax.device_get(f(given))
                if kind == MANUAL:
                    kind, out = AUTO, QUANTIZED_BY_HAND[name]
                    f = jax.shard_map(f, mesh=MESHES[AUTO], in_specs=spec, out_specs=out)
                return measure(f, (put(kind, given, spec),), want)

            yield kind, f"quantize {name}", run


def dequantized_and_gradient(quantizer):
    """Returns what becomes of x, and a gradient through both ways."""

    def both(x):
        loss = lambda x: (quantizer(x).dequantize() ** 2).sum()  # noqa: E731
        return quantizer(x).dequantize(), jax.grad(loss)(x)

    return both


def dequantize_programs():
    """Yields dequantized arrays and gradients for each division that leaves blocks whole."""
    x = normal(3, N, K)
    for kind in (AUTO, EXPLICIT, MANUAL):
        for name, (quantizer, spec) in QUANTIZATIONS.items():
            is_split = "split" in name or name == "k_grouped, rows"
            if is_split or (kind == MANUAL and name not in QUANTIZED_BY_HAND):
                continue

            def run(kind=kind, name=name, quantizer=quantizer, spec=spec):
                f = dequantized_and_gradient(quantizer)
                want = jax.device_get(f(x))
                if kind == MANUAL:
                    kind, out = AUTO, (QUANTIZED_BY_HAND[name], spec)
                    f = jax.shard_map(f, mesh=MESHES[AUTO], in_specs=spec, out_specs=out)
                return measure(f, (put(kind, x, spec),), want)

            yield kind, f"dequantize {name}", run

    def vmapped():
        f = jax.vmap(dequantized_and_gradient(square))
        batch = normal(3, 4, M, M)
        return measure(f, (put(EXPLICIT, batch, P("y")),), jax.device_get(f(batch)))

    yield EXPLICIT, "vmap of dequantize", vmapped

    def joined():
        """Parts, factors and joins where they cut no device's part."""

        def f(x):
            w = square(x)
            parts = [w[:, 128 * i : 128 * (i + 1)] for i in range(2)]
            layers = fp8.stack(
                [fp8.concatenate([*parts, 2 * w], 1), -fp8.concatenate([w, *parts], -1)]
            )
            return layers[1].mT

        x = normal(3, N, M)
        return measure(f, (put(EXPLICIT, x, P("y")),), jax.device_get(f(x)))

    yield EXPLICIT, "joined parts", joined

    for kind in (AUTO, EXPLICIT):

        def split(kind=kind):
            w = square(normal(3, 500, 128))  # of 4 devices, each with 125 rows and a scale
            return measure(
                lambda w: w.dequantize(), (put(kind, w, P("y")),), jax.device_get(w.dequantize())
            )

        yield kind, "dequantize, a block split", split
