# SPDX-License-Identifier: Apache-2.0
"""Compiles quantizers of what the same program computes, for an H100: argv is the dumps' folder.

Run by test_aot_rounding.py. What they quantize is in the scope "made", activations and norms are in
the scope "computed". Writes the optimized HLO of each program to <name>-<dtype>-<implementation>.
"""

import functools
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from _quantizers import GROUPED_QUANTIZERS, QUANTIZERS  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

import jax_fp8gemm as fp8  # noqa: E402
from jax_fp8gemm._src.xla import activation  # noqa: E402

M, N, K, G = 256, 128, 512, 2

for computed in ("activate", "normalize"):
    setattr(activation, computed, jax.named_scope("computed")(getattr(activation, computed)))


@jax.named_scope("made")
def made(x, y):
    """Returns what is rounded to the dtype of x last."""
    return (x.astype(jnp.float32) * y.astype(jnp.float32)).astype(x.dtype)


def of_activation(make):
    """Returns a quantizer of what `make` computes."""
    return lambda x, sizes, **options: fp8.quantize(make(x), **options)


def accumulated(x, sizes, implementation):
    """Adds a product to x."""
    a, b = (fp8.quantize(jnp.ones((n, N)), implementation=implementation) for n in (M, K))
    options = dict(accumulator=x, preferred_element_type=x.dtype, implementation=implementation)
    return fp8.gemm(a, b, **options)


def unrounded(x, sizes, implementation):
    """What must not be: the float32 from before x was rounded."""
    return x.astype(jnp.float32) * 3


PROGRAMS = {
    **{
        name: lambda x, sizes, quantizer=quantizer, **options: quantizer(x, **options)
        for name, quantizer in QUANTIZERS.items()
    },
    **GROUPED_QUANTIZERS,
    "swiglu": of_activation(lambda x: fp8.swiglu(x, x + 1)),
    "swiglu of both": of_activation(fp8.swiglu),
    "geglu": of_activation(lambda x: fp8.geglu(x, x + 1)),
    "gelu": of_activation(fp8.gelu),
    "rms_norm": of_activation(lambda x: fp8.rms_norm(x, jnp.ones(x.shape[-1], x.dtype))),
    "accumulator": accumulated,
    "unrounded": unrounded,
}


def main(folder: Path) -> None:
    """Compiles every program."""
    target = Path(__file__).with_name("h100.txtpb").read_text()
    topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=target)
    mesh = topologies.make_mesh(topo=topology, mesh_shape=(1,), axis_names=("x",))
    sharding = NamedSharding(mesh, PartitionSpec())

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    for name, program in PROGRAMS.items():
        for dtype in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
            for implementation in ("xla", "cuda"):

                def produced(x, y, sizes, *, run):
                    return run(made(x, y), sizes)

                run = functools.partial(program, implementation=implementation)
                arguments = (array(dtype, M, K), array(dtype, M, K), array(jnp.int32, G))
                jitted = jax.jit(functools.partial(produced, run=run))
                text = jitted.lower(*arguments).compile().as_text()
                (folder / f"{name}-{dtype.name}-{implementation}").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
