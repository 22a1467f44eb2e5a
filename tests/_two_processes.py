# SPDX-License-Identifier: Apache-2.0
"""One of two processes of a job: python tests/_two_processes.py PORT INDEX.

Run by test_processes.py. The same program as on a cluster of GPUs, with gloo in the place of NCCL.
"""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import jax_fp8gemm as fp8  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import expert_parallel  # noqa: E402

T, K, N = 64, 512, 256
AXES = ("data", "model")


def normal(seed: int, *shape: int) -> np.ndarray:
    """Returns the same numbers in every process."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def check(what: str, got: jax.Array, want: np.ndarray, limit: float) -> None:
    """Compares what this process holds of a result."""
    for shard in got.addressable_shards:
        part = want[shard.index]
        error = np.linalg.norm(np.asarray(shard.data) - part) / np.linalg.norm(part)
        if not error <= limit:
            raise AssertionError(f"{what}: relative error {error} over {limit}")


def check_experts(put) -> None:
    """Sends tokens to experts in both processes, with one expert on each device."""
    x, w = normal(3, T, K), normal(4, 4, K, N) / K**0.5
    chosen = np.random.default_rng(5).integers(0, 4, (T, 1)).astype(np.int32)
    order = np.argsort(chosen[:, 0], kind="stable")
    sizes = np.bincount(chosen[:, 0], minlength=4).astype(np.int32)
    want = np.empty((T, K), np.float32)
    both_ways = lambda dot, x, w: dot(dot(x, w), w.swapaxes(1, 2))  # noqa: E731
    want[order] = both_ways(lambda x, w: fp8.ragged_dot(x, w, sizes), x[order], w)

    def layer(x, w, chosen):
        def experts(rows, sizes):
            return both_ways(lambda x, w: fp8.ragged_dot(x, w, sizes), rows, w)

        gates = jnp.ones_like(chosen, x.dtype)
        return expert_parallel.expert_layer(experts, x, chosen, gates, 4, AXES)[0]

    mapped = jax.shard_map(layer, in_specs=P(AXES), out_specs=P(AXES))
    operands = [put(each, AXES) for each in (x, w, chosen)]
    with jax.set_mesh(operands[0].sharding.mesh):
        check("experts", jax.jit(mapped)(*operands), want, 1e-5)


def main(port: str, index: int) -> None:
    """Computes steps and a layer of experts over both processes, and compares with one device."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address = f"127.0.0.1:{port}"
    jax.distributed.initialize(
        address, num_processes=2, process_id=index, coordinator_bind_address=address
    )
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
    mesh = jax.make_mesh((2, 2), AXES, axis_types=(AxisType.Auto,) * 2)

    def put(x, *spec):
        sharding = NamedSharding(mesh, P(*spec))
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    x, w, dy = normal(0, T, K), normal(1, K, N) / K**0.5, normal(2, T, N)
    y_want, pull = jax.vjp(fp8.dot, x, w)
    dx_want, dw_want = map(np.asarray, pull(dy))

    def step(x, w, dy):
        y, pull = jax.vjp(fp8.dot, x, w)
        return y, *pull(dy)

    # K over both processes: their sums meet in the middle.
    for k_axes in ("model", AXES):
        rows = "data" if k_axes == "model" else None
        arguments = put(x, rows, k_axes), put(w, k_axes, None), put(dy, rows, None)
        y, dx, dw = jax.jit(step)(*arguments)
        check("y", y, np.asarray(y_want), 1e-5)
        check("dx", dx, dx_want, 1e-5)
        # 32 tokens per device instead of 64: blocks of their own, rounded independently.
        check("dw", dw, dw_want, 6e-2)
    check_experts(put)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
