# SPDX-License-Identifier: Apache-2.0
"""Compiles layers under lax.scan for an H100: python tests/_aot_slices.py FILE [true | false].

Run by test_aot.py in a process of its own, because XLA reads its flags once. Writes the optimized
HLO to FILE, compiled with or without dynamic-slice fusion.
"""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_gpu_enable_dynamic_slice_fusion={sys.argv[2]}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

import jax_fp8gemm as fp8  # noqa: E402

LAYERS, M, K = 8, 64, 512


def layers(x, values, scales):
    """The layers of a model, whose weights lie behind one another."""
    layer = lambda x, weight: (fp8.gemm(fp8.quantize(x), weight), None)  # noqa: E731
    return jax.lax.scan(layer, x, (values, scales))[0]


def main(path: Path) -> None:
    """Compiles the layers."""
    target = Path(__file__).with_name("h100.txtpb").read_text()
    topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=target)
    mesh = topologies.make_mesh(topo=topology, mesh_shape=(1,), axis_names=("x",))

    def array(dtype, *shape):
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    weights = array(jnp.float8_e4m3fn, LAYERS, K, K), array(jnp.float32, LAYERS, K // 128, K // 128)
    compiled = jax.jit(layers).lower(array(jnp.bfloat16, M, K), *weights).compile()
    path.write_text(compiled.as_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
