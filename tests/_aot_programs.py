# SPDX-License-Identifier: Apache-2.0
"""Compiles small programs for an H100 with XLA:GPU: python tests/_aot_programs.py DUMP_FOLDER.

Run by test_aot.py in a process of its own, because XLA reads its flags once. Writes the optimized
HLO of each program to DUMP_FOLDER/<program>.hlo; XLA writes the thunks beside it.
"""

import os
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_dump_to={FOLDER} --xla_dump_hlo_as_text"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

import jax_fp8gemm as fp8  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import expert_parallel  # noqa: E402

M, N, K = 256, 512, 512
G = 8
CHAIN_LENGTH = 6  # more than XLA's least number of kernels in a command buffer


def quantized_lhs(x, w, w_scales):
    """Activations are quantized in the same program, as in a model."""
    return fp8.gemm(fp8.quantize(x), (w, w_scales))


def given_scales(x, x_scales, w, w_scales):
    """Everything comes from outside in JAX's default layout."""
    return fp8.gemm((x, x_scales), (w, w_scales))


def accumulated(x, w, w_scales, accumulator):
    """The accumulator is donated."""
    return fp8.gemm(
        fp8.quantize(x),
        (w, w_scales),
        accumulator=accumulator,
        preferred_element_type=accumulator.dtype,
    )


def chain(x, w, w_scales):
    """Layers one after the other; square, so that each feeds the next."""
    for _ in range(CHAIN_LENGTH):
        x = fp8.gemm(fp8.quantize(x), (w, w_scales))
    return x


def batched(x, w, w_scales):
    """A batch of activations under vmap with one weight."""
    return jax.vmap(quantized_lhs, in_axes=(0, None, None))(x, w, w_scales)


def sharded(x, w, w_scales):
    """Rows over 2 of the 8 devices and K over 4: each multiplies its part, and 4 add up."""
    return fp8.gemm(fp8.quantize(x), (w, w_scales))


def trained(x, w):
    """A step of training: the product, and both gradients."""
    loss = lambda x, w: (fp8.dot(x, w).astype(jnp.float32) ** 2).sum()  # noqa: E731
    return jax.value_and_grad(loss, (0, 1))(x, w)


def trained_on_8(x, w):
    """The same with tokens over 2 devices and columns of the weight over 4."""
    return trained(x, w)


def grouped(x, w, w_scales, group_sizes):
    """Activations of groups are quantized in the same program."""
    return fp8.grouped_gemm(fp8.quantize(x), (w, w_scales), group_sizes)


def grouped_weight_gradient(x, dy, group_sizes, accumulator):
    """Both operands are scaled along tokens; the accumulator is donated."""
    return fp8.k_grouped_gemm(
        fp8.quantize_k_grouped(dy, group_sizes),
        fp8.quantize_k_grouped(x, group_sizes),
        group_sizes,
        accumulator=accumulator,
    )


def experts_on_8(x, w, w_scales, masked_m):
    """Experts over 2 devices, columns of their weights over 4, in decoding."""
    return fp8.grouped_gemm_masked(fp8.quantize(x), (w, w_scales), masked_m)


def expert_layer_on_8(x, w, chosen, gates, recipe=None, **options):
    """A step of training of a layer whose 8 experts are on a device each."""

    def layer(x, w, chosen, gates):
        experts = lambda rows, sizes: fp8.ragged_dot(rows, w, sizes, recipe=recipe)  # noqa: E731
        return expert_parallel.expert_layer(
            experts,
            x,
            chosen,
            gates,
            G,
            ("x", "y"),
            max_rows=3 * chosen.size,
            **options,
        )[0]

    over_all = PartitionSpec(("x", "y"))
    mapped = jax.shard_map(layer, in_specs=over_all, out_specs=over_all)
    loss = lambda x, w: (mapped(x, w, chosen, gates).astype(jnp.float32) ** 2).sum()  # noqa: E731
    return jax.grad(loss, (0, 1))(x, w)


def fp8_expert_layer_on_8(*operands):
    """The same, with rows in FP8 on their way to the experts."""
    return expert_layer_on_8(*operands, send_fp8=True)


def fp8_gradients_expert_layer_on_8(*operands):
    """The same, with gradients in FP8 on their way to the experts."""
    recipe = fp8.Recipe(scale_format="pow2")
    return expert_layer_on_8(*operands, recipe=recipe, send_fp8=True, send_gradients_fp8=True)


def fp8_results_expert_layer_on_8(*operands):
    """The same, with everything in FP8."""
    recipe = fp8.Recipe(scale_format="pow2")
    options = dict.fromkeys(("send_fp8", "send_gradients_fp8", "return_fp8"), True)
    return expert_layer_on_8(*operands, recipe=recipe, **options)


def compile_for_8(target: str) -> None:
    """Compiles the programs for 8 devices."""
    topology = topologies.get_topology_desc(platform="cuda", topology="1x1x8", target_config=target)
    mesh = topologies.make_mesh(topo=topology, mesh_shape=(2, 4), axis_names=("x", "y"))

    def array(dtype, shape, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    programs = {
        sharded: (
            array(jnp.bfloat16, (M, K), "x", "y"),
            array(jnp.float8_e4m3fn, (N, K), None, "y"),
            array(jnp.float32, (N // 128, K // 128), None, "y"),
        ),
        trained_on_8: (
            array(jnp.bfloat16, (M, K), "x"),
            array(jnp.bfloat16, (K, N), None, "y"),
        ),
        experts_on_8: (
            array(jnp.bfloat16, (G, 64, K), "x"),
            array(jnp.float8_e4m3fn, (G, N, K), "x", "y"),
            array(jnp.float32, (G, N // 128, K // 128), "x", "y"),
            array(jnp.int32, (G,), "x"),
        ),
    }
    for layer in (
        expert_layer_on_8,
        fp8_expert_layer_on_8,
        fp8_gradients_expert_layer_on_8,
        fp8_results_expert_layer_on_8,
    ):
        programs[layer] = (
            array(jnp.bfloat16, (M, K), ("x", "y")),
            array(jnp.bfloat16, (G, K, K), ("x", "y")),
            array(jnp.int32, (M, 2), ("x", "y")),
            array(jnp.bfloat16, (M, 2), ("x", "y")),
        )
    for program, arguments in programs.items():
        with jax.set_mesh(mesh):
            compiled = jax.jit(program).lower(*arguments).compile()
        (FOLDER / f"{program.__name__}.hlo").write_text(compiled.as_text())


def main() -> None:
    """Compiles every program."""
    target = Path(__file__).with_name("h100.txtpb").read_text()
    topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=target)
    mesh = topologies.make_mesh(topo=topology, mesh_shape=(1,), axis_names=("x",))
    sharding = NamedSharding(mesh, PartitionSpec())

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    x = array(jnp.bfloat16, M, K)
    weight = (array(jnp.float8_e4m3fn, N, K), array(jnp.float32, N // 128, K // 128))
    quantized = (array(jnp.float8_e4m3fn, M, K), array(jnp.float32, M, K // 128))
    programs = {
        quantized_lhs: (x, *weight),
        given_scales: (*quantized, *weight),
        accumulated: (x, *weight, array(jnp.float32, M, N)),
        chain: (x, *weight),
        batched: (array(jnp.bfloat16, 3, M, K), *weight),
        trained: (x, array(jnp.bfloat16, K, N)),
        grouped: (
            x,
            array(jnp.float8_e4m3fn, G, N, K),
            array(jnp.float32, G, N // 128, K // 128),
            array(jnp.int32, G),
        ),
        grouped_weight_gradient: (
            x,
            array(jnp.bfloat16, M, N),
            array(jnp.int32, G),
            array(jnp.float32, G, N, K),
        ),
    }
    for program, arguments in programs.items():
        donated = (3,) if program in (accumulated, grouped_weight_gradient) else ()
        compiled = jax.jit(program, donate_argnums=donated).lower(*arguments).compile()
        (FOLDER / f"{program.__name__}.hlo").write_text(compiled.as_text())
    compile_for_8(target)


if __name__ == "__main__":
    main()
