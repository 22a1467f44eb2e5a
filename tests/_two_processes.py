# SPDX-License-Identifier: Apache-2.0
"""One of two processes of a job: python tests/_two_processes.py PORT INDEX.

Run by test_processes.py. The same program as on a cluster of GPUs, with gloo in the place of NCCL.
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import jax_fp8gemm as fp8  # noqa: E402

T, K, N = 64, 512, 256


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


def main(port: str, index: int) -> None:
    """Computes a product and a training step over both processes, and compares with one device."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address = f"127.0.0.1:{port}"
    jax.distributed.initialize(
        address, num_processes=2, process_id=index, coordinator_bind_address=address
    )
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

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
    for k_axes in ("model", ("data", "model")):
        rows = "data" if k_axes == "model" else None
        arguments = put(x, rows, k_axes), put(w, k_axes, None), put(dy, rows, None)
        y, dx, dw = jax.jit(step)(*arguments)
        check("y", y, np.asarray(y_want), 1e-5)
        check("dx", dx, dx_want, 1e-5)
        # 32 tokens per device instead of 64: blocks of their own, rounded independently.
        check("dw", dw, dw_want, 6e-2)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
