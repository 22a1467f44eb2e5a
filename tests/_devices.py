# SPDX-License-Identifier: Apache-2.0
"""Runs sharded programs on 8 virtual CPU devices: python tests/_devices.py OUTPUT.json PERIOD.

Run by test_sharding.py in a process of its own, because XLA reads its flags once, with
JAX_PLATFORMS=cpu and XLA_FLAGS=--xla_force_host_platform_device_count=8. Writes what each program
compiled to and how far its results are from those of one device.
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from _expert_devices import expert_programs, exported_expert_programs, full_expert_programs
from _grouped_devices import (
    grouped_programs,
    ragged_dot_programs,
    sharded_sizes_programs,
    vmapped_programs,
)
from _quantize_devices import dequantize_programs, quantize_programs
from _training_devices import training_programs
from _virtual_devices import (
    AUTO,
    EXPLICIT,
    MANUAL,
    MESHES,
    export_and_measure,
    measure,
    normal,
    put,
    write_results,
)
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

M, N, K = 256, 1024, 1024


# ---- gemm: division of lhs, division of rhs, wanted division of the result ----------------------

GEMMS = {
    "M": (P("x"), P(), None),
    "N": (P(), P("y"), None),
    "MxN": (P("x"), P("y"), None),
    "M over both": (P(("x", "y")), P(), None),
    "K": (P(None, "y"), P(None, "y"), None),
    "MxK": (P("x", "y"), P(None, "y"), None),
    "KxN": (P(None, "x"), P("y", "x"), None),
    "K over both": (P(None, ("x", "y")), P(None, ("x", "y")), None),
    "K of lhs alone": (P(None, "y"), P(), None),
    "K, result along N": (P(None, "y"), P(None, "y"), P(None, "y")),
    "K, result along M": (P(None, "y"), P(None, "y"), P("y")),
    "MxK, result along M": (P("x", "y"), P(None, "y"), P(("x", "y"))),
    "weights divided over the devices of M": (P("x"), P(None, "x"), None),
    "one mesh axis for M and N": (P("x"), P("x"), None),
}


def gemm(lhs, rhs, **kwargs):
    """The product in float32 by plain JAX, which every device has."""
    return fp8.gemm(lhs, rhs, implementation="xla", preferred_element_type=jnp.float32, **kwargs)


def gemm_programs():
    """Yields a name and a measurement for each division of gemm."""
    lhs = fp8.quantize(normal(0, M, K))
    rhs = fp8.quantize(normal(1, N, K), (128, 128))
    accumulator = normal(2, M, N)
    want = np.asarray(gemm(lhs, rhs))
    for kind in (AUTO, EXPLICIT):
        for name, (lhs_spec, rhs_spec, out) in GEMMS.items():
            if kind == EXPLICIT and out is not None:
                continue  # gemm has no out_sharding; dot_general does

            def run(kind=kind, lhs_spec=lhs_spec, rhs_spec=rhs_spec, out=out):
                operands = put(kind, lhs, lhs_spec), put(kind, rhs, rhs_spec)
                options = {} if out is None else {"out_shardings": NamedSharding(MESHES[kind], out)}
                return measure(gemm, operands, want, **options)

            yield kind, f"gemm {name}", run

        def accumulated(kind=kind):
            operands = put(kind, lhs, P("x", "y")), put(kind, rhs, P(None, "y"))
            operands += (put(kind, accumulator, P("x")),)
            return measure(lambda a, b, c: gemm(a, b, accumulator=c), operands, want + accumulator)

        yield kind, "gemm with accumulator, MxK", accumulated

        def split_block(kind=kind):
            short = jax.tree.map(lambda leaf: leaf[:, : leaf.shape[1] // 2], (lhs, rhs))
            whole = put(kind, [t.scales for t in short], P())
            values = put(kind, [t.values for t in short], P(None, ("x", "y")))
            operands = [(v, s) for v, s in zip(values, whole, strict=True)]
            return measure(gemm, operands, np.asarray(gemm(*short)))

        yield kind, "gemm, a block split", split_block

        def one_block(kind=kind):
            small = jax.tree.map(lambda leaf: leaf[:128] if leaf.shape[0] > 8 else leaf[:1], rhs)
            small = [
                jax.tree.map(lambda leaf: leaf[:, : leaf.shape[1] // 8], t) for t in (lhs, small)
            ]
            operands = put(kind, small[0], P("x")), put(kind, small[1], P())
            return measure(gemm, operands, np.asarray(gemm(*small)))

        yield kind, "gemm M, one block of N and K", one_block
    yield from gemm_programs_in_contexts(lhs, rhs, want)


def gemm_programs_in_contexts(lhs, rhs, want):
    """Yields a name and a measurement for gemm under shard_map, set_mesh and auto_axes."""

    def manual():
        mesh = MESHES[AUTO]
        f = jax.shard_map(
            lambda a, b: jax.lax.psum(gemm(a, b), "y"),
            mesh=mesh,
            in_specs=(P("x", "y"), P(None, "y")),
            out_specs=P("x"),
        )
        return measure(f, (put(AUTO, lhs, P("x", "y")), put(AUTO, rhs, P(None, "y"))), want)

    yield MANUAL, "gemm MxK", manual

    def partly_manual():
        f = jax.shard_map(
            gemm, mesh=MESHES[AUTO], in_specs=(P("x"), P()), out_specs=P("x"), axis_names={"x"}
        )
        return measure(f, (put(AUTO, lhs, P("x")), put(AUTO, rhs, P())), want)

    yield MANUAL, "gemm M, y automatic", partly_manual

    def ambient():
        return measure(gemm, (put(AUTO, lhs, P("x", "y")), put(AUTO, rhs, P(None, "y"))), want)

    yield AUTO, "gemm MxK in an ambient mesh", ambient
    # Arrays that are in no mesh: the program names none.
    whole = lambda: measure(gemm, (lhs, rhs), want)  # noqa: E731
    yield AUTO, "gemm of whole operands in an ambient mesh", whole

    def automatic_inside_explicit():
        f = jax.sharding.auto_axes(gemm, out_sharding=P("x"))
        operands = put(EXPLICIT, lhs, P("x", "y")), put(EXPLICIT, rhs, P(None, "y"))
        return measure(f, operands, want)

    yield EXPLICIT, "gemm MxK under auto_axes", automatic_inside_explicit


# ---- Training steps: a network of two dots -------------------------------------------------------

TOKENS, WIDTH, HIDDEN = (8, 32), 512, 1024
# Division of the tokens and of the two weights.
STEPS = {
    "data": (P("x"), P(), P()),
    "data over both": (P("x", "y"), P(), P()),
    "tensor": (P(), P(None, "y"), P("y")),
    "data and tensor": (P("x"), P(None, "y"), P("y")),
    "data, tensor and sequence": (P("x", "y"), P(None, "y"), P("y")),
    "fully sharded data": (P("x"), P("x", "y"), P("y", "x")),
}


def network(dot, weights, x):
    """A residual layer of two products."""
    return jnp.mean((dot(jax.nn.gelu(dot(x, weights[0])), weights[1]) - x) ** 2)


def xla_dot(x, w):
    """The FP8 product by plain JAX."""
    return fp8.dot(x, w, implementation="xla")


def step_programs():
    """Yields a name and a measurement for each way to train."""
    weights = [0.05 * normal(4, WIDTH, HIDDEN), 0.05 * normal(5, HIDDEN, WIDTH)]
    x = normal(6, *TOKENS, WIDTH)
    step = jax.value_and_grad(lambda weights, x: network(xla_dot, weights, x))
    want = jax.device_get(jax.jit(step)(weights, x))
    for kind in (AUTO, EXPLICIT):
        for name, (x_spec, *weight_specs) in STEPS.items():

            def run(kind=kind, x_spec=x_spec, weight_specs=weight_specs):
                arguments = put(kind, weights, weight_specs), put(kind, x, x_spec)
                options = {}
                if kind == AUTO:  # gradients stay where their weights are
                    shardings = [NamedSharding(MESHES[kind], s) for s in weight_specs]
                    options = {"out_shardings": (None, shardings)}
                return measure(step, arguments, want, **options)

            yield kind, f"step {name}", run

    def manual():
        f = jax.shard_map(
            lambda weights, x: jax.lax.pmean(network(xla_dot, weights, x), "x"),
            mesh=MESHES[AUTO],
            in_specs=(P(), P("x")),
            out_specs=P(),
        )
        arguments = put(AUTO, weights, P()), put(AUTO, x, P("x"))
        return measure(jax.value_and_grad(f), arguments, want)

    yield MANUAL, "step data", manual


# Division of K and N, and the extents: more parts than there are blocks of 128, or parts of 1.5.
SPLIT_BLOCKS = {
    "N": (P(), P(None, "y"), 256, 256),
    "K": (P(None, "y"), P("y"), 256, 256),
    "N over both": (P(), P(None, ("x", "y")), 256, 512),
    "K over both": (P(None, ("x", "y")), P(("x", "y")), 1536, 256),
}


def split_block_programs():
    """Yields gradients of dot where devices have parts of a block, also over two mesh axes."""
    for name, (x_spec, w_spec, k, n) in SPLIT_BLOCKS.items():

        def run(x_spec=x_spec, w_spec=w_spec, k=k, n=n):
            dy = jnp.sin(jnp.arange(n, dtype=jnp.float32))
            f = jax.grad(lambda x, w: (xla_dot(x, w) * dy).sum(), (0, 1))
            x, w = normal(30, 16, k), normal(31, k, n)
            operands = put(AUTO, x, x_spec), put(AUTO, w, w_spec)
            return measure(f, operands, jax.device_get(f(x, w)))

        yield AUTO, f"gradients of dot, blocks split along {name}", run


def dot_general_programs():
    """Yields a name and a measurement for each `out_sharding`."""
    x, w = normal(7, 4, 64, WIDTH), normal(8, WIDTH, HIDDEN)
    dimensions = (((2,), (0,)), ((), ()))
    want = np.asarray(xla_dot(x, w))
    for spec in (P("x", None, "y"), P("x", "y"), P("x")):

        def run(spec=spec):
            f = lambda x, w: fp8.dot_general(x, w, dimensions, out_sharding=spec)  # noqa: E731
            operands = put(EXPLICIT, x, P("x", None, "y")), put(EXPLICIT, w, P("y"))
            return measure(f, operands, want)

        yield EXPLICIT, f"dot_general {tuple(spec)}", run

    batch, weights = normal(9, 4, 64, WIDTH), normal(10, 4, WIDTH, HIDDEN)
    numbers = (((2,), (1,)), ((0,), (0,)))

    def batched(x, w):
        return fp8.dot_general(x, w, numbers)

    for kind in (AUTO, EXPLICIT, MANUAL):

        def with_batch(kind=kind):
            f = batched
            if kind == MANUAL:
                kind, specs = AUTO, (P("x"), P("x", None, "y"))
                f = jax.shard_map(f, mesh=MESHES[AUTO], in_specs=specs, out_specs=P("x", None, "y"))
            operands = put(kind, batch, P("x")), put(kind, weights, P("x", None, "y"))
            return measure(f, operands, np.asarray(batched(batch, weights)))

        yield kind, "dot_general with a batch", with_batch

    def merged():
        """K is of two dimensions, of which the inner one is divided."""
        x4, w4 = x.reshape(4, 64, 4, -1), w.reshape(4, -1, HIDDEN)
        f = lambda x, w: fp8.dot_general(x, w, (((2, 3), (0, 1)), ((), ())))  # noqa: E731
        operands = put(EXPLICIT, x4, P(None, None, None, "y")), put(EXPLICIT, w4, P(None, "y"))
        return measure(f, operands, want)

    yield EXPLICIT, "dot_general of a divided inner dimension", merged

    def vmapped():
        f = jax.grad(lambda x, w: jax.vmap(xla_dot, (0, None))(x, w).sum(), (0, 1))
        operands = put(EXPLICIT, x, P("x")), put(EXPLICIT, w, P(None, "y"))
        return measure(f, operands, jax.device_get(f(x, w)))

    yield EXPLICIT, "grad(vmap(dot)) over a divided batch", vmapped

    def elsewhere():
        """No mesh is set: it is that of the operands."""
        f = lambda x, w: fp8.dot_general(jnp.tanh(x), w, dimensions).sum()  # noqa: E731
        f = jax.grad(f, (0, 1))
        operands = put(EXPLICIT, x, P("x")), put(EXPLICIT, w, P(None, "y"))
        return measure(f, operands, jax.device_get(f(x, w)))

    yield EXPLICIT, "dot_general without set_mesh", elsewhere


# ---- jax.export ----------------------------------------------------------------------------------


def export_programs():
    """Yields a training step that is written for CPU and CUDA, read again, and called."""
    mesh = MESHES[AUTO]
    weights = [0.05 * normal(4, WIDTH, HIDDEN), 0.05 * normal(5, HIDDEN, WIDTH)]
    x = normal(6, *TOKENS, WIDTH)
    loss = jax.shard_map(
        lambda weights, x: jax.lax.pmean(network(fp8.dot, weights, x), "x"),
        mesh=mesh,
        in_specs=(P(), P("x")),
        out_specs=P(),
    )
    step = jax.jit(jax.value_and_grad(loss))
    arguments = put(AUTO, weights, P()), put(AUTO, x, P("x"))

    def run():
        return export_and_measure(step, arguments, jax.device_get(step(*arguments)))

    yield MANUAL, "exported step", run


PROGRAMS = (
    gemm_programs,
    quantize_programs,
    dequantize_programs,
    step_programs,
    split_block_programs,
    dot_general_programs,
    training_programs,
    export_programs,
    grouped_programs,
    vmapped_programs,
    ragged_dot_programs,
    sharded_sizes_programs,
    expert_programs,
    full_expert_programs,
    exported_expert_programs,
)


def main() -> None:
    """Runs one in PERIOD programs; an error becomes a result."""
    every = itertools.chain.from_iterable(programs() for programs in PROGRAMS)
    write_results(sys.argv[1], every, int(sys.argv[2]))


if __name__ == "__main__":
    main()
