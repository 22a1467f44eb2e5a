# SPDX-License-Identifier: Apache-2.0
"""Programs of _devices.py with groups: products of experts divided among 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
from _virtual_devices import AUTO, EXPLICIT, MANUAL, MESHES, measure, normal, put
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

G, M_MAX, T, K, N = 8, 32, 512, 512, 512
SIZES = np.asarray([100, 0, 50, 60, 70, 0, 132, 100], np.int32)
MASKED_M = np.asarray([3, 0, 32, 5, 1, 2, 3, 4], np.int32)
GROUP_IDS = np.repeat(np.asarray([0, 3, -1, 2, 2, 7, -1, 0], np.int32), 128)

OPTIONS = {"preferred_element_type": jnp.float32}


def masked(*operands):
    """The masked product in float32."""
    return fp8.grouped_gemm_masked(*operands, **OPTIONS)


def contiguous(*operands):
    """The aligned product in float32."""
    return fp8.grouped_gemm_contiguous(*operands, **OPTIONS)


def ragged(*operands):
    """The ragged product in float32."""
    return fp8.grouped_gemm(*operands, **OPTIONS)


def k_grouped(lhs, rhs, group_sizes, accumulator=None):
    """The K-grouped product in float32."""
    return fp8.k_grouped_gemm(lhs, rhs, group_sizes, accumulator=accumulator, **OPTIONS)


def batch(lhs, rhs):
    """A batch of products in float32, each with a weight of its own."""
    return jax.vmap(lambda *operands: fp8.gemm(*operands, **OPTIONS))(lhs, rhs)


# Program: function, division of lhs, rhs, group data (and accumulator).
GROUPED = {
    "masked, experts": (masked, P("x"), P("x"), P("x")),
    "masked, experts x N": (masked, P("x"), P("x", "y"), P("x")),
    "masked, experts over both": (masked, P(("x", "y")), P(("x", "y")), P(("x", "y"))),
    "masked, experts x K": (masked, P("x", None, "y"), P("x", None, "y"), P("x")),
    "masked, M": (masked, P(None, "x"), P(), P()),
    "contiguous, rows": (contiguous, P("x"), P(), P("x")),
    "contiguous, rows x N": (contiguous, P("x"), P(None, "y"), P("x")),
    "contiguous, rows over both": (contiguous, P(("x", "y")), P(), P(("x", "y"))),
    "contiguous, rows x K": (contiguous, P("x", "y"), P(None, None, "y"), P("x")),
    "contiguous, experts": (contiguous, P(), P("x"), P()),
    "ragged, N": (ragged, P(), P(None, "y"), P()),
    "ragged, K": (ragged, P(None, "y"), P(None, None, "y"), P()),
    "ragged, rows": (ragged, P("x"), P(), P()),
    "ragged, experts": (ragged, P(), P("x"), P()),
    "k_grouped, M x N": (k_grouped, P("x"), P("y"), P()),
    "k_grouped with accumulator, M x N": (k_grouped, P("x"), P("y"), P(), P(None, "x", "y")),
    "batch, experts x N": (batch, P("x"), P("x", "y")),
    "batch, experts over both": (batch, P(("x", "y")), P(("x", "y"))),
    "batch, experts x K": (batch, P("x", None, "y"), P("x", None, "y")),
}
# Program under shard_map: division of the result, mesh axes that it is summed over.
BY_HAND = {
    "masked, experts x N": (P("x", None, "y"), ()),
    "masked, experts x K": (P("x"), "y"),
    "contiguous, rows x N": (P("x", "y"), ()),
    "contiguous, rows x K": (P("x"), "y"),
    "ragged, N": (P(None, "y"), ()),
    "ragged, K": (P(), "y"),
    "k_grouped, M x N": (P(None, "x", "y"), ()),
    "k_grouped with accumulator, M x N": (P(None, "x", "y"), ()),
    "batch, experts x N": (P("x", None, "y"), ()),
}


def _operands(f) -> tuple:
    weights = fp8.quantize(normal(11, G, N, K), (128, 128))
    if f is masked:
        return fp8.quantize(normal(10, G, M_MAX, K)), weights, MASKED_M
    if f is batch:
        return fp8.quantize(normal(10, G, M_MAX, K)), weights
    if f is k_grouped:
        columns = (fp8.quantize_k_grouped(normal(i, T, 256 + i), SIZES) for i in (0, 128))
        return (*columns, SIZES, normal(13, G, 256, 384))
    data = GROUP_IDS if f is contiguous else SIZES
    return fp8.quantize(normal(12, 2 * T if f is contiguous else T, K)), weights, data


def grouped_programs():
    """Yields a name and a measurement for each division of a grouped product."""
    for kind in (AUTO, EXPLICIT):
        for name, (f, *specs) in GROUPED.items():

            def run(kind=kind, f=f, specs=specs):
                operands = _operands(f)[: len(specs)]
                want = np.asarray(f(*operands))
                divided = [put(kind, x, s) for x, s in zip(operands, specs, strict=True)]
                return measure(f, divided, want)

            yield kind, name, run
    for name, (out_spec, summed) in BY_HAND.items():
        f, *specs = GROUPED[name]

        def by_hand(f=f, specs=specs, out_spec=out_spec, summed=summed):
            def local(*operands):
                out = f(*operands)
                return jax.lax.psum(out, summed) if summed else out

            operands = _operands(f)[: len(specs)]
            divided = [put(AUTO, x, s) for x, s in zip(operands, specs, strict=True)]
            mapped = jax.shard_map(
                local, mesh=MESHES[AUTO], in_specs=tuple(specs), out_specs=out_spec
            )
            return measure(mapped, divided, np.asarray(f(*operands)))

        yield MANUAL, name, by_hand


# Batches of products, divided over "x", with what has no batch; columns of weights over "y".
VMAPPED = {
    "masked, shared weights": (masked, (0, None, 0)),
    "contiguous": (contiguous, (0, 0, 0)),
    "ragged": (ragged, (0, 0, 0)),
    "ragged, shared weights": (ragged, (0, None, 0)),
    "k_grouped": (k_grouped, (0, 0, 0, 0)),
}


def _batched_operands(f) -> tuple:
    """Small operands with a batch of 4 in front; each device of "y" has one block of N."""
    rng = np.random.default_rng(0)
    if f is k_grouped:
        columns = (fp8.quantize(normal(20 + i, 4, 128, 384)) for i in range(2))
        sizes = np.asarray([[256, 0, 128], [0, 0, 384], [0, 0, 0], [128, 128, 128]], np.int32)
        return *columns, sizes, normal(22, 4, 3, 128, 128)
    weights = fp8.quantize(normal(21, 4, 3, 512, 128), (128, 128))
    if f is masked:
        rows, groups = fp8.quantize(normal(20, 4, 3, 8, 128)), rng.integers(0, 9, (4, 3))
    elif f is contiguous:
        rows = fp8.quantize(normal(20, 4, 256, 128))
        groups = np.repeat(rng.integers(-1, 3, (4, 2)), 128, axis=1)
    else:
        rows, groups = fp8.quantize(normal(20, 4, 24, 128)), rng.integers(0, 9, (4, 3))
    return rows, weights, groups.astype(np.int32)


def vmapped_programs():
    """Yields a name and a measurement for products of batches that a mesh divides."""
    for kind in (AUTO, EXPLICIT):
        for name, (f, in_axes) in VMAPPED.items():

            def run(kind=kind, f=f, in_axes=in_axes):
                operands, divided = [], []
                for i, (x, axis) in enumerate(zip(_batched_operands(f), in_axes, strict=True)):
                    batch = () if axis is None else ("x",)
                    columns = (None, "y") if i == 1 and f is not k_grouped else ()
                    operands.append(x if batch else jax.tree.map(lambda leaf: leaf[0], x))
                    divided.append(put(kind, operands[-1], P(*batch, *columns)))
                want = np.asarray(jax.vmap(f, in_axes)(*operands))
                return measure(jax.vmap(f, in_axes), divided, want)

            yield kind, f"vmap of {name}", run

    def nested():
        """Each of two batches divided over a mesh axis of its own."""
        rows, weights, sizes = _batched_operands(ragged)
        weights = jax.tree.map(lambda leaf: leaf[0], weights)
        rows, sizes = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), (rows, sizes))
        f = jax.vmap(jax.vmap(ragged, (0, None, 0)), (0, None, 0))
        want = np.asarray(f(rows, weights, sizes))
        specs = P("x", "y"), P(), P("x", "y")
        operands = zip((rows, weights, sizes), specs, strict=True)
        return measure(f, [put(EXPLICIT, x, s) for x, s in operands], want)

    yield EXPLICIT, "vmap of vmap of ragged", nested


def _gradients(x, w, sizes, recipe=None):
    """Returns the gradients of a sum whose own gradient does not depend on how y was rounded."""
    dy = jnp.sin(jnp.arange(T * N, dtype=jnp.float32)).reshape(T, N)

    def loss(x, w):
        y = fp8.ragged_dot(x, w, sizes, implementation="xla", recipe=recipe)
        return (y * dy).sum()

    return jax.grad(loss, (0, 1))(x, w)


def _gradients_in_bfloat16(x, w, sizes):
    """The same with gradients of the weights in another format."""
    return _gradients(x, w, sizes, fp8.Recipe(weight_gradient="bfloat16"))


def sharded_sizes_programs():
    """Yields a ragged product whose sizes are divided, which every device needs whole."""
    x, w = normal(14, T, K), normal(15, G, K, N) / K**0.5
    f = lambda *operands: fp8.ragged_dot(*operands, implementation="xla")  # noqa: E731
    for kind in (AUTO, EXPLICIT):

        def run(kind=kind):
            operands = put(kind, x, P()), put(kind, w, P()), put(kind, SIZES, P("x"))
            return measure(f, operands, jax.device_get(f(x, w, SIZES)))

        yield kind, "ragged_dot, group sizes", run


def ragged_dot_programs():
    """Yields a name and a measurement for ragged_dot's gradients, and for a layer of experts."""
    x, w = normal(14, T, K), normal(15, G, K, N) / K**0.5
    for kind in (AUTO, EXPLICIT):
        for name, x_spec, w_spec, gradients in (
            ("N", P(), P(None, None, "y"), _gradients),
            ("K", P(None, "y"), P(None, "y"), _gradients),
            ("N, in bfloat16", P(), P(None, None, "y"), _gradients_in_bfloat16),
            ("K, in bfloat16", P(None, "y"), P(None, "y"), _gradients_in_bfloat16),
        ):

            def run(kind=kind, x_spec=x_spec, w_spec=w_spec, gradients=gradients):
                want = jax.device_get(gradients(x, w, SIZES))
                operands = put(kind, x, x_spec), put(kind, w, w_spec), put(kind, SIZES, P())
                return measure(gradients, operands, want)

            yield kind, f"gradients of ragged_dot, {name}", run

        def rows(kind=kind):
            f = lambda *operands: fp8.ragged_dot(*operands, implementation="xla")  # noqa: E731
            operands = put(kind, x, P("x")), put(kind, w, P()), put(kind, SIZES, P())
            return measure(f, operands, jax.device_get(f(x, w, SIZES)))

        yield kind, "ragged_dot, rows", rows

        def batched(kind=kind):
            """Experts over "x" with tokens of their own, columns over "y": one sum, for dx."""
            tokens = normal(17, G, M_MAX, K)

            def loss(x, w):
                return (jax.vmap(fp8.dot)(x, w) * jnp.cos(jnp.arange(N))).sum()

            gradients = jax.grad(loss, (0, 1))
            operands = put(kind, tokens, P("x")), put(kind, w, P("x", None, "y"))
            want = jax.device_get(gradients(tokens, w))
            # A gradient is divided as its operand: XLA would gather one that nothing is said of.
            like = tuple(operand.sharding for operand in operands)
            return measure(gradients, operands, want, out_shardings=like)

        yield kind, "gradients of a batch of dots, experts x N", batched

    def tokens_manual():
        """Tokens over "x", each device with groups of its own: what expert layers do."""
        halves, sizes = normal(16, 2, T, K), np.stack([SIZES, SIZES[::-1]])

        def local(x, w, sizes):
            y = fp8.ragged_dot(x[0], w, sizes[0], implementation="xla")
            return jax.lax.psum((y**2).sum(), "x")

        f = jax.shard_map(local, mesh=MESHES[AUTO], in_specs=(P("x"), P(), P("x")), out_specs=P())

        def plain(x, w, sizes):
            products = (fp8.ragged_dot(x[i], w, sizes[i], implementation="xla") for i in range(2))
            return sum((y**2).sum() for y in products)

        want = jax.device_get(jax.grad(plain, (0, 1))(halves, w, sizes))
        operands = put(AUTO, halves, P("x")), put(AUTO, w, P()), put(AUTO, sizes, P("x"))
        return measure(jax.grad(f, (0, 1)), operands, want)

    yield MANUAL, "gradients of ragged_dot, tokens", tokens_manual
