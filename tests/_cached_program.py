# SPDX-License-Identifier: Apache-2.0
"""Compiles sharded programs with XLA's cache: python tests/_cached_program.py DIR NUM_SMS.

Run by test_processes.py. Prints the number of compilations that the cache did not save.
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import jax.monitoring  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import jax_fp8gemm as fp8  # noqa: E402


def main(directory: str, num_sms: int) -> None:
    """Compiles a product and the gradients of two on 8 devices, rows by columns."""
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Without this, the partitioner's callback is a part of the key: a new one in each process.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P("x", "y")))

    lhs = fp8.BlockScaled(array(jnp.float8_e4m3fn, 64, 512), array(jnp.float32, 64, 4), (1, 128))
    rhs = (array(jnp.float8_e4m3fn, 256, 512), array(jnp.float32, 2, 4))
    jax.jit(lambda a, b: fp8.gemm(a, b, num_sms=num_sms)).lower(lhs, rhs).compile()
    step = jax.grad(lambda w, x: fp8.dot(jnp.tanh(fp8.dot(x, w)), w).astype(jnp.float32).sum())
    jax.jit(step).lower(array(jnp.bfloat16, 512, 512), array(jnp.bfloat16, 256, 512)).compile()
    print(events.count("/jax/compilation_cache/cache_misses"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
