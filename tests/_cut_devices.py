# SPDX-License-Identifier: Apache-2.0
"""Runs what divides blocks of 128 among devices: python tests/_cut_devices.py OUTPUT.json PERIOD.

As _devices.py, for test_cut_blocks.py: every operation, kind of mesh, divided axis and extent of a
part, gradients included. An error becomes a result.
"""

import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from _virtual_devices import AUTO, EXPLICIT, MANUAL, MESHES, measure, normal, put, write_results
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

DEVICES = 4  # of mesh axis "y"
M, G, WHOLE = 16, 2, 256
INSIDE, ACROSS, WHOLE_BLOCK = 64, 88, 128  # of a block
# The longest programs have the part that takes the most; test_sharding.py has more of whole blocks.
LONG = ("dot of ", "dot, ", "ragged_dot")
WITH_WHOLE_BLOCKS = ("gemm", "dot", "quantize square")
SIZES = np.asarray([9, 4], np.int32)
IDS = np.repeat(np.asarray([1, -1], np.int32), 128)
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


# Dimensions of both operands that are N and K, of weights (N, K) or (K, N).
NK = {"N": (None, -2), "K": (-1, -1)}
KN = {"N": (None, -1), "K": (-1, -2)}
QUANTIZERS = {
    "quantize": fp8.quantize,
    "quantize square": lambda x: fp8.quantize(x, (128, 128)),
    "quantize_transposed": fp8.quantize_transposed,
    "quantize swiglu": lambda x: fp8.quantize(fp8.swiglu(x, jnp.cos(x))),
}


def products(implementation: str):
    """Returns those of quantized operands, by name, with the shapes of the operands without K."""
    options = {"preferred_element_type": jnp.float32, "implementation": implementation}
    gemm = lambda x, w: fp8.gemm(x, w, **options)  # noqa: E731
    ragged = lambda x, w: fp8.grouped_gemm(x, w, SIZES, **options)  # noqa: E731
    contiguous = lambda x, w: fp8.grouped_gemm_contiguous(x, w, IDS, **options)  # noqa: E731
    masked = lambda x, w: fp8.grouped_gemm_masked(x, w, SIZES, **options)  # noqa: E731
    return {
        "gemm": (gemm, (M,), ()),
        "vmap of gemm": (jax.vmap(gemm), (G, M), (G,)),
        "ragged": (ragged, (M,), (G,)),
        "contiguous": (contiguous, (len(IDS),), (G,)),
        "masked": (masked, (G, M), (G,)),
    }


def operations(n: int, k: int) -> dict:
    """Returns functions by name, what makes their operands, and which dimensions are N and K."""
    found = {}

    def quantized(rows, lead):
        weight = fp8.quantize(normal(1, *lead, n, k), (128, 128))
        return fp8.quantize(normal(0, *rows, k)), weight

    for suffix, implementation in (("", "xla"), (", sim", "sim")):
        for name, (f, *shapes) in products(implementation).items():
            if not suffix or name in ("gemm", "masked"):
                found[name + suffix] = f, functools.partial(quantized, *shapes), NK

    def arrays(*lead):
        return normal(0, M, k), normal(1, *lead, k, n)

    def with_bits():
        x, w = arrays()
        return x, fp8.quantize(w.T, (128, 128))

    def with_master():
        x, w = arrays()
        return x, fp8.MasterWeight.quantize(w)

    for name, recipe in RECIPES.items():
        dot = lambda x, w, recipe=recipe: fp8.dot(x, w, recipe=recipe)  # noqa: E731
        found[name] = with_gradients(dot), arrays, KN
    ragged_dot = lambda x, w: fp8.ragged_dot(x, w, SIZES)  # noqa: E731
    found["ragged_dot"] = with_gradients(ragged_dot), functools.partial(arrays, G), KN
    found["dot of BlockScaled"] = gradient_of_x, with_bits, NK
    found["dot of MasterWeight"] = of_master, with_master, KN
    for name, quantizer in QUANTIZERS.items():
        make = lambda: (normal(1, n, k),)  # noqa: E731
        found[name] = quantized_and_back(quantizer), make, {"N": (-2,), "K": (-1,)}
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
    for axis, part in itertools.product("NK", (INSIDE, ACROSS, WHOLE_BLOCK)):
        n, k = (DEVICES * part, WHOLE) if axis == "N" else (WHOLE, DEVICES * part)
        for name, (f, make, dims) in operations(n, k).items():
            left_out = {
                INSIDE: name.startswith(LONG),
                ACROSS: False,
                WHOLE_BLOCK: name not in WITH_WHOLE_BLOCKS,
            }
            for kind in () if left_out[part] else (AUTO, EXPLICIT):

                def run(kind=kind, f=f, make=make, dims=dims[axis]):
                    operands = make()
                    placed = [divided(kind, x, d) for x, d in zip(operands, dims, strict=True)]
                    return measure(f, placed, jax.device_get(jax.jit(f)(*operands)))

                yield kind, f"{name}, {axis} {part}", run
    yield from gather_programs()
    yield from own_scales_programs()


def gather_programs():
    """Yields what is gathered by hand, of a weight in parts of blocks too, and its gradient."""
    x, w = normal(0, M, WHOLE), normal(1, WHOLE, WHOLE + 96)

    def gathered(cls, i: int, dim: int, spec: P):
        def product(*operands):
            part = cls.all_gather(operands[i], "y", axis=dim)
            return fp8.dot(*operands[:i], part, *operands[i + 1 :])

        def local(*operands):
            y, pull = jax.vjp(product, *operands)
            cotangent = jnp.broadcast_to(jnp.cos(jnp.arange(y.shape[-1])), y.shape)
            gradients = list(pull(cotangent))
            gradients[i] /= DEVICES  # the devices of "y" computed the same
            return y, *gradients

        specs = [P(), P()]
        specs[i] = spec
        f = jax.shard_map(
            local,
            mesh=MESHES[AUTO],
            in_specs=tuple(specs),
            out_specs=(P(), *specs),
            check_vma=False,
        )
        want = jax.device_get(with_gradients(fp8.dot)(x, w))
        return measure(f, (put(AUTO, x, specs[0]), put(AUTO, w, specs[1])), jax.tree.leaves(want))

    for cls, i, dim, spec in (
        (fp8.MasterWeight, 1, 0, P("y")),
        (fp8.MasterWeight, 1, 1, P(None, "y")),
        (fp8.QuantizedActivation, 0, 0, P("y")),
    ):
        run = functools.partial(gathered, cls, i, dim, spec)
        yield MANUAL, f"{cls.__name__}.all_gather along {dim}", run


def own_scales_programs():
    """Yields products by hand with weights in parts of blocks, whose scales came whole."""
    options = {"preferred_element_type": jnp.float32, "implementation": "sim"}
    for axis, part in itertools.product("NK", (INSIDE, ACROSS, WHOLE_BLOCK)):

        def run(axis=axis, part=part):
            n, k = (DEVICES * part, WHOLE) if axis == "N" else (WHOLE, DEVICES * part)
            x, w = fp8.quantize(normal(0, M, k)), fp8.quantize(normal(1, n, k), (128, 128))
            dim = "NK".index(axis)

            def local(x, w):
                w = w.with_own_scales("y", axis=dim)
                x = x.with_own_scales("y", axis=1) if axis == "K" else x
                y = fp8.gemm(x, w, **options)
                return jax.lax.psum(y, "y") if axis == "K" else y

            of_x, of_w = (P(), P("y")) if axis == "N" else (P(None, "y"), P(None, "y"))
            specs = tuple(
                fp8.BlockScaled.tree_unflatten(each.block, (spec, P()))
                for each, spec in ((x, of_x), (w, of_w))
            )
            out = P(None, "y") if axis == "N" else P()
            f = jax.shard_map(local, mesh=MESHES[AUTO], in_specs=specs, out_specs=out)
            operands = put(AUTO, x, [of_x, P()]), put(AUTO, w, [of_w, P()])
            return measure(f, operands, jax.device_get(fp8.gemm(x, w, **options)))

        yield MANUAL, f"gemm with own scales, {axis} {part}", run


def main() -> None:
    """Runs one in PERIOD programs."""
    write_results(sys.argv[1], cut_programs(), int(sys.argv[2]))


if __name__ == "__main__":
    main()
