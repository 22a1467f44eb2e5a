# SPDX-License-Identifier: Apache-2.0
"""Runs sums that devices exchange in FP8: python tests/_sum_devices.py OUTPUT.json PERIOD.

As _devices.py, for test_sums.py. What is wanted is computed on one device, from what each of 8
would multiply: rounded where it is sent, and added up in float64.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from _virtual_devices import AUTO, EXPLICIT, MANUAL, MESHES, measure, normal, put, write_results
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

SIZES = {"x": 2, "y": 4}
T, K, N = 48, 1024, 264  # results of N / 4 = 66 columns end inside a block
E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2
BOTH = ("x", "y")


def recipe_of(dtype) -> fp8.Recipe:
    return fp8.Recipe(reduce_dtype=dtype)


# ---- What is wanted ------------------------------------------------------------------------------


def rounded(x, dtype) -> np.ndarray:
    """Returns what arrives of what is sent, with a scale for each 1x128, in NumPy."""
    x = np.asarray(x, np.float32)
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 128)])
    blocks = padded.reshape(*x.shape[:-1], -1, 128)
    amax = np.abs(blocks).max(-1, keepdims=True)
    scales = np.where(amax == 0, 1, amax / np.float32(jnp.finfo(dtype).max)).astype(np.float32)
    values = (blocks * (1 / scales)).astype(dtype).astype(float) * scales
    return values.reshape(padded.shape)[..., : x.shape[-1]]


def scattered(parts, dim: int, dtype) -> np.ndarray:
    """Returns the sum of parts, each device's part of it beside the other's."""
    pieces = [np.split(part, len(parts), dim) for part in parts]
    sums = [sum(rounded(piece, dtype) for piece in each) for each in zip(*pieces, strict=True)]
    return np.concatenate(sums, dim)


def whole(parts, dtype) -> np.ndarray:
    """Returns the sum of parts, each device's rounded once more."""
    count, size, shape = len(parts), parts[0].size, parts[0].shape
    parts = [np.pad(np.ravel(part), (0, -size % (128 * count))).reshape(-1, 128) for part in parts]
    return rounded(scattered(parts, 0, dtype), dtype).reshape(-1)[:size].reshape(shape)


# ---- Programs ------------------------------------------------------------------------------------


def dot_of(x, w, out_sharding=None, **options):
    return fp8.dot(x, w, preferred_element_type=jnp.float32, out_sharding=out_sharding, **options)


def ragged_of(x, w, out_sharding=None, **options):
    sizes = jnp.asarray([T // 2, 0, T // 3], jnp.int32)
    return fp8.ragged_dot(x, w, sizes, out_sharding=out_sharding, **options)


def gradient_of(x, dy, out_sharding=None, **options):
    """The gradient of a weight (K, N), of tokens of x (tokens, K)."""
    w = jnp.zeros((x.shape[-1], dy.shape[-1]), jnp.float32)
    if out_sharding is not None:
        w = jax.sharding.reshard(w, out_sharding)
    loss = lambda w: (fp8.dot(x, w, **options) * dy).sum()  # noqa: E731
    return jax.grad(loss)(w)


def vmap_of(x, w, out_sharding=None, **options):
    spec = None if out_sharding is None else P(*out_sharding[1:])
    return jax.vmap(functools.partial(dot_of, out_sharding=spec, **options))(x, w)


# Operation, shapes of its operands, and the dimension of each that is summed over.
PRODUCTS = {
    "dot": (dot_of, (T, K), (K, N), (1, 0)),
    "dot of a batch": (dot_of, (2, T, K), (K, N), (2, 0)),
    "ragged_dot": (ragged_of, (T, K), (3, K, N), (1, 1)),
    "gradient of dot": (gradient_of, (K, T), (K, N), (0, 0)),
    "vmap of dot": (vmap_of, (2, T, K), (2, K, N), (2, 1)),
}
# Mesh axes that are summed over, and the dimension of the result, from the end, that some divide.
WHOLE, ROWS, COLUMNS = (("y",), None, ()), (("y",), -2, ("y",)), (("y",), -1, ("y",))
SOME = (BOTH, -2, ("y",))
ALL, ALL_ROWS = (BOTH, None, ()), (BOTH, -2, BOTH)


def divided_sum(kind: str, product: str, how, dtype, implementation: str):
    """Returns a function that measures a product whose contracted dimension is divided."""
    op, *shapes, dims = PRODUCTS[product]
    axes, dim, over = how
    ndim = len(shapes[0])

    def run():
        operands = normal(1, *shapes[0]), normal(2, *shapes[1])
        count = np.prod([SIZES[axis] for axis in axes])
        split = [np.split(x, count, d) for x, d in zip(operands, dims, strict=True)]
        alone = jax.jit(functools.partial(op, implementation="xla"))
        parts = [np.asarray(alone(*each), float) for each in zip(*split, strict=True)]
        if over == axes:
            want = scattered(parts, dim, dtype)
        elif over:  # first among those of "y", then the sums among those of "x"
            sums = [scattered(parts[i : i + 4], dim, dtype) for i in (0, 4)]
            own = [np.split(each, 4, dim) for each in sums]
            want = np.concatenate([whole(each, dtype) for each in zip(*own, strict=True)], dim)
        else:
            want = whole(parts, dtype)

        spec = [None] * ndim
        if dim is not None:
            spec[dim] = over
        placed = []
        for x, d in zip(operands, dims, strict=True):
            entries = [None] * x.ndim
            entries[d] = axes
            placed.append(put(kind, x, P(*entries)))
        options = {"implementation": implementation, "recipe": recipe_of(dtype)}
        f = functools.partial(op, out_sharding=P(*spec) if kind == EXPLICIT else None, **options)
        shardings = jax.sharding.NamedSharding(MESHES[kind], P(*spec))
        with jax.set_mesh(MESHES[kind]):
            return measure(f, placed, want, out_shardings=shardings)

    return run


def mapped(f, in_specs, out_specs):
    return jax.shard_map(f, mesh=MESHES[AUTO], in_specs=in_specs, out_specs=out_specs)


def scatter(recipe, dim, partial, gradient):
    """Sums of rows or columns, and what comes back of their gradient."""
    spec = P("y") if dim == 0 else P(None, "y")

    def f(partial, gradient):
        options = {"scatter_dimension": dim, "recipe": recipe}
        y, pull = jax.vjp(lambda x: fp8.psum_scatter(x, "y", **options), partial[0])
        return y, pull(gradient)[0][None]

    return mapped(f, (P("y"), spec), (spec, P("y")))(partial, gradient)


def scatters():
    """Yields sums that are asked for by name, with gradients."""
    partial, gradient = normal(4, 4, 64, 512), normal(5, 64, 512)
    back = np.asarray(fp8.quantize(gradient, scale_format="pow2").dequantize())
    pow2 = fp8.Recipe(scale_format="pow2", reduce_dtype=E4M3)
    for name, recipe, dim, returned in (
        ("FP8, rows", recipe_of(E4M3), 0, gradient),
        ("FP8, columns", recipe_of(E4M3), 1, gradient),
        ("FP8 and pow2, rows", pow2, 0, back),
        ("FP8 and pow2, columns", pow2, 1, back),
    ):

        def run(recipe=recipe, dim=dim, returned=returned):
            want = scattered(list(partial), dim, E4M3), np.stack([returned] * 4)
            return measure(functools.partial(scatter, recipe, dim), [partial, gradient], want)

        yield MANUAL, f"psum_scatter, {name}", run

    def default():
        f = lambda x: fp8.psum_scatter(x[0], "y", scatter_dimension=1)  # noqa: E731
        return measure(mapped(f, P("y"), P(None, "y")), [partial], partial.sum(0))

    yield MANUAL, "psum_scatter, the default", default

    def vmapped():
        each = functools.partial(fp8.psum_scatter, axis_name="y", recipe=recipe_of(E5M2))

        def f(partial):
            return jax.vmap(each)(partial[0].reshape(64, 2, 256).swapaxes(0, 1))

        want = [scattered(list(partial[..., i : i + 256]), 0, E5M2) for i in (0, 256)]
        return measure(mapped(f, P("y"), P(None, "y")), [partial], np.stack(want))

    yield MANUAL, "psum_scatter, vmap", vmapped

    def not_divisible():
        f = mapped(lambda x: fp8.psum_scatter(x[0], "y"), P("y"), P("y"))
        return measure(f, [normal(1, 4, 6, 128)], None)

    yield MANUAL, "psum_scatter, not divisible", not_divisible


def gradient_of_gathered(gather, product, recipe):
    """Returns a function of two operands and dy: the gradient of what is gathered of the first."""

    def f(given, other, dy):
        def value(given):
            return product(gather(given, "y", recipe=recipe), other, recipe=recipe)

        return jax.vjp(value, given)[1](dy)[0]

    return f


def gathers():
    """Yields gradients of what is gathered: rows of a weight, or of activations."""
    x, w, dy = normal(1, 64, K), normal(2, K, 256), normal(3, 64, 256)

    columns = P(None, "y")
    for name, gather, product, operands, specs in (
        (
            "MasterWeight",
            fp8.MasterWeight.all_gather,
            lambda w, x, **options: fp8.dot(x, w, **options),
            (w, x, dy),
            (P("y"), P("y"), P("y")),
        ),
        (
            "QuantizedActivation",
            fp8.QuantizedActivation.all_gather,
            fp8.dot,
            (x, w, dy),
            (P("y"), columns, columns),
        ),
    ):

        def run(dtype, gather=gather, product=product, operands=operands, specs=specs):
            given, *others = operands
            divided = zip(others, specs[1:], strict=True)
            split = [np.split(each, 4, len(spec) - 1) for each, spec in divided]
            parts = []
            for other, dy in zip(*split, strict=True):
                (part,) = jax.vjp(lambda given, other=other: product(given, other), given)[1](dy)
                parts.append(np.asarray(part, float))
            want = sum(parts) if dtype == jnp.float32 else scattered(parts, 0, dtype)
            f = gradient_of_gathered(gather, product, recipe_of(dtype))
            return measure(mapped(f, specs, P("y")), operands, want)

        for dtype in (E4M3, jnp.float32):
            called = f"{name}.all_gather, {jnp.dtype(dtype).name}"
            yield MANUAL, called, functools.partial(run, dtype)


def programs():
    """Yields all programs."""
    cases = [
        *(("dot", how, E4M3, "xla") for how in (WHOLE, ROWS, COLUMNS, SOME, ALL, ALL_ROWS)),
        *(("dot", how, E5M2, "sim") for how in (WHOLE, ROWS)),
        *((name, how, E4M3, "xla") for name in list(PRODUCTS)[1:] for how in (WHOLE, ROWS)),
    ]
    names = {WHOLE: "whole", ROWS: "rows", COLUMNS: "columns", SOME: "rows over one of two"}
    names |= {ALL: "whole over two", ALL_ROWS: "rows over two"}
    for kind in (AUTO, EXPLICIT):
        for product, how, dtype, implementation in cases:
            name = f"{product}, {names[how]}, {jnp.dtype(dtype).name}, {implementation}"
            yield kind, name, divided_sum(kind, product, how, dtype, implementation)
    yield from scatters()
    yield from gathers()


if __name__ == "__main__":
    write_results(sys.argv[1], programs(), int(sys.argv[2]))
