# SPDX-License-Identifier: Apache-2.0
"""Runs what divides blocks of 128 among devices: python tests/_cut_devices.py OUTPUT.json PERIOD.

As _devices.py, for test_cut_blocks.py: every operation, kind of mesh, divided axis and extent of a
part, gradients included.
"""

import contextlib
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from _tiers import in_sample
from _virtual_devices import AUTO, EXPLICIT, MANUAL, MESHES, measure, normal, put
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

DEVICES = 4  # of mesh axis "y"
M, G, WHOLE = 16, 2, 256
PARTS = (64, 88, 128)  # inside a block, of two blocks at most, whole
SIZES = np.asarray([9, 4], np.int32)
IDS = np.repeat(np.asarray([1, -1], np.int32), 128)
OPTIONS = {"preferred_element_type": jnp.float32}
RECIPES = {
    "dot": fp8.Recipe(),
    "dot, pow2": fp8.Recipe(scale_format="pow2"),
    "dot, bfloat16 weight gradient": fp8.Recipe(weight_gradient="bfloat16"),
}


def with_gradients(product):
    """Returns a function that returns a product and its gradients."""

    def both(*operands):
        def loss(*operands):
            y = product(*operands)
            return (y * jnp.cos(jnp.arange(y.shape[-1]))).sum()

        return product(*operands), jax.grad(loss, (0, 1), allow_int=True)(*operands)

    return both


def gradient_of_x(x, w):
    """Returns a product with a weight that has no gradient, and that of the activations."""
    y, pull = jax.vjp(lambda x: fp8.dot(x, w), x)
    return y, pull(y * 0 + jnp.cos(jnp.arange(y.shape[-1])))


def of_master(x, w):
    """Returns a product and gradients, of the weight as an array."""
    y, (dx, dw) = with_gradients(fp8.dot)(x, w)
    return y, dx, dw.master


def quantized_and_back(quantizer):
    """Returns a function that returns values, scales, both together, and a gradient through all."""

    def every(x):
        q = quantizer(x)
        gradient = jax.grad(lambda x: (quantizer(x).dequantize() ** 2).sum() / 4)(x)
        return q.values, q.scales, q.dequantize(), gradient

    return every


def operations(n: int, k: int) -> dict:
    """Returns functions by name, with operands and the dimensions of these that are N and K."""
    x, w, experts = normal(0, M, k), normal(1, k, n), normal(2, G, k, n)
    rows, batch = fp8.quantize(x), fp8.quantize(normal(3, G, M, k))
    aligned = fp8.quantize(normal(4, len(IDS), k))
    weight = fp8.quantize(w.T, (128, 128))
    weights = fp8.quantize(experts.swapaxes(1, 2), (128, 128))
    kn, nk, square = {"N": (None, -1), "K": (-1, -2)}, {"N": (None, -2), "K": (-1, -1)}, (-2, -1)
    sim = {**OPTIONS, "implementation": "sim"}
    found = {
        "gemm": (lambda x, w: fp8.gemm(x, w, **OPTIONS), (rows, weight), nk),
        "gemm, sim": (lambda x, w: fp8.gemm(x, w, **sim), (rows, weight), nk),
        "vmap of gemm": (jax.vmap(lambda x, w: fp8.gemm(x, w, **OPTIONS)), (batch, weights), nk),
        "ragged": (lambda x, w: fp8.grouped_gemm(x, w, SIZES, **OPTIONS), (rows, weights), nk),
        "contiguous": (
            lambda x, w: fp8.grouped_gemm_contiguous(x, w, IDS, **OPTIONS),
            (aligned, weights),
            nk,
        ),
        "masked": (
            lambda x, w: fp8.grouped_gemm_masked(x, w, SIZES, **OPTIONS),
            (batch, weights),
            nk,
        ),
        "masked, sim": (
            lambda x, w: fp8.grouped_gemm_masked(x, w, SIZES, **sim),
            (batch, weights),
            nk,
        ),
        "dot of BlockScaled": (gradient_of_x, (x, weight), nk),
        "dot of MasterWeight": (of_master, (x, fp8.MasterWeight.quantize(w)), kn),
        "ragged_dot": (
            with_gradients(lambda x, w: fp8.ragged_dot(x, w, SIZES)),
            (x, experts),
            kn,
        ),
    }
    for name, recipe in RECIPES.items():
        dot = lambda x, w, recipe=recipe: fp8.dot(x, w, recipe=recipe)  # noqa: E731
        found[name] = with_gradients(dot), (x, w), kn
    quantizers = {
        "quantize": fp8.quantize,
        "quantize square": lambda x: fp8.quantize(x, (128, 128)),
        "quantize_transposed": fp8.quantize_transposed,
        "quantize swiglu": lambda x: fp8.quantize(fp8.swiglu(x, jnp.cos(x))),
    }
    of_x = {axis: (dim,) for axis, dim in zip("NK", square, strict=True)}
    for name, quantizer in quantizers.items():
        found[name] = quantized_and_back(quantizer), (w.T,), of_x
    return found


def divided(kind: str, operand, dim: int | None):
    """Divides an operand along a dimension; scales of blocks that are cut are whole."""

    def spec(leaf):
        entries = [None] * leaf.ndim
        if dim is not None and leaf.shape[dim] % DEVICES == 0:
            entries[dim] = "y"
        return P(*entries)

    return put(kind, operand, list(map(spec, jax.tree.leaves(operand))))


def cut_programs():
    """Yields a name and a measurement for each operation, mesh, axis and part."""
    for axis, part in itertools.product("NK", PARTS):
        n, k = (DEVICES * part, WHOLE) if axis == "N" else (WHOLE, DEVICES * part)
        for name, (f, operands, dims) in operations(n, k).items():
            for kind in (AUTO, EXPLICIT):

                def run(kind=kind, f=f, operands=operands, dims=dims[axis]):
                    placed = [divided(kind, x, d) for x, d in zip(operands, dims, strict=True)]
                    return measure(f, placed, jax.device_get(jax.jit(f)(*operands)))

                yield kind, f"{name}, {axis} {part}", run
    yield from gather_programs()


def gather_programs():
    """Yields the weight that a device gathers of parts of blocks, and its gradient, by hand."""
    x, w = normal(0, M, WHOLE), normal(1, WHOLE, WHOLE + 96)
    want = jax.device_get(with_gradients(fp8.dot)(x, w))
    for dim, spec in enumerate((P("y"), P(None, "y"))):

        def run(dim=dim, spec=spec):
            def product(x, part):
                return fp8.dot(x, fp8.MasterWeight.all_gather(part, "y", axis=dim))

            def local(x, part):
                y, pull = jax.vjp(product, x, part)
                dx, dw = pull(jnp.broadcast_to(jnp.cos(jnp.arange(y.shape[-1])), y.shape))
                return y, dx, dw / DEVICES  # the devices of "y" computed the same

            specs = (P(), spec)
            f = jax.shard_map(
                local, mesh=MESHES[AUTO], in_specs=specs, out_specs=(P(), *specs), check_vma=False
            )
            return measure(f, (put(AUTO, x, P()), put(AUTO, w, spec)), jax.tree.leaves(want))

        yield MANUAL, f"MasterWeight.all_gather along {dim}", run


def main() -> None:
    """Runs one in PERIOD programs; an error becomes a result."""
    period = int(sys.argv[2])
    results = {}
    for kind, name, run in cut_programs():
        if in_sample(f"{kind}: {name}", period):
            explicit = kind == EXPLICIT
            context = jax.set_mesh(MESHES[EXPLICIT]) if explicit else contextlib.nullcontext()
            with context:
                results[f"{kind}: {name}"] = run()
    with open(sys.argv[1], "w") as file:
        json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
