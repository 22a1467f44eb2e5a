# SPDX-License-Identifier: Apache-2.0
"""Programs of _devices.py that train: divided as callers ask, and activations on the way."""

import itertools

import jax
import jax.numpy as jnp
from _virtual_devices import AUTO, EXPLICIT, measure, normal, put
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

M, K, N, G = 64, 256, 512, 2
SIZES = jnp.asarray([40, 20], jnp.int32)
# Division of the activations, of experts (G, K, N), and of the result.
EXPERTS = {
    "N": (P(), P(None, None, "y"), P(None, "y")),
    "N, result whole": (P(), P(None, None, "y"), P()),
    "K of the activations": (P(None, "x"), P(), P()),
    "K of the experts": (P(), P(None, "x"), P()),
}
# What a product takes for its activations, and how these and its weight are divided.
PRODUCERS = {
    "swiglu": lambda x: fp8.swiglu(x, jnp.cos(x)),
    "gelu": fp8.gelu,
    "rms_norm": lambda x: fp8.rms_norm(x, 1 + jnp.arange(K) / K),
}
PRODUCED = {"rows": (P("x"), P()), "K": (P(None, "x"), P("x"))}


def gradients(product, *operands):
    """Returns the gradients of a product by its operands."""
    weights = jnp.cos(jnp.arange(N, dtype=jnp.float32))
    loss = lambda *operands: (product(*operands) * weights).sum()  # noqa: E731
    return jax.grad(loss, tuple(range(len(operands))), allow_int=True)(*operands)


def training_programs():
    """Yields a name and a measurement for each way to ask for a division."""
    x, w, experts = normal(40, M, K), normal(41, K, N), normal(42, G, K, N)
    for name, (x_spec, rhs_spec, out) in EXPERTS.items():

        def run(x_spec=x_spec, rhs_spec=rhs_spec, out=out):
            def f(x, rhs, **options):
                return gradients(lambda *a: fp8.ragged_dot(*a, SIZES, **options), x, rhs)

            operands = put(EXPLICIT, x, x_spec), put(EXPLICIT, experts, rhs_spec)
            want = jax.device_get(f(x, experts))
            return measure(lambda *a: f(*a, out_sharding=out), operands, want)

        yield EXPLICIT, f"gradients of ragged_dot with out_sharding, {name}", run

    rows = normal(44, 4 * M, K)
    for kind, (name, producer), (divided, specs) in itertools.product(
        (AUTO, EXPLICIT), PRODUCERS.items(), PRODUCED.items()
    ):

        def run(kind=kind, producer=producer, specs=specs):
            def f(x, w):
                return gradients(lambda x, w: fp8.dot(producer(x), w), x, w)

            operands = put(kind, rows, specs[0]), put(kind, w, specs[1])
            return measure(f, operands, jax.device_get(f(rows, w)))

        yield kind, f"gradients of dot of {name}, {divided}", run

    def vmapped():
        batch = normal(43, 4, M, K)
        f = jax.vmap(lambda x, w: fp8.dot(x, w, out_sharding=P(None, "y")), (0, None))
        operands = put(EXPLICIT, batch, P("x")), put(EXPLICIT, w, P())
        return measure(f, operands, jax.device_get(jax.vmap(fp8.dot, (0, None))(batch, w)))

    yield EXPLICIT, "vmap of dot with out_sharding", vmapped

    def whole_bits():
        """The master is sharded, and what is multiplied is not."""
        bits = fp8.quantize(w, (128, 128))
        weight = fp8.MasterWeight(put(EXPLICIT, w, P("x")), put(EXPLICIT, bits, P()))
        f = lambda x, w: gradients(fp8.dot, x, w)[1].master  # noqa: E731
        want = gradients(fp8.dot, x, w)[1]
        return measure(f, (put(EXPLICIT, x, P()), weight), jax.device_get(want))

    yield EXPLICIT, "gradient of a master of whole bits", whole_bits

    for name, spec in {"rank": P(None, None, "x"), "axis": P("z")}.items():

        def other(spec=spec):
            operands = put(EXPLICIT, x, P("x")), put(EXPLICIT, w, P())
            return measure(lambda x, w: fp8.dot(x, w, out_sharding=spec), operands, None)

        yield EXPLICIT, f"out_sharding of another {name}", other
