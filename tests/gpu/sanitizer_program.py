# SPDX-License-Identifier: Apache-2.0
"""Small calls of every kernel family, to be run under compute-sanitizer:

    compute-sanitizer --tool memcheck python tests/gpu/sanitizer_program.py [sim]

Also with racecheck and synccheck; `make gpu-check` runs all three. Every allocation is the
driver's own, so that a byte past an array is past an allocation. With "sim" it runs simulated.
"""

import os
import sys
from pathlib import Path

# Before jax is imported: no pool of device memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_ALLOCATOR", "platform")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
for folder in (Path(__file__).parent, Path(__file__).parent.parent):
    sys.path.insert(0, str(folder))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from _dense import (  # noqa: E402
    assert_close,
    dense_configs,
    device_for,
    gemm_with,
    operands_for,
    with_config,
)
from cases import GemmCase, normal  # noqa: E402

# Tails in every dimension; more K blocks than the deepest pipeline has stages.
CASES = (
    GemmCase("sanitized", 1, 136, 128),
    GemmCase("sanitized", 33, 77, 301),
    GemmCase("sanitized", 130, 264, 2208),
)
# One tile of each kind: few rows, one consumer, clusters both ways, three consumers, two waves.
TILES = ("m16n32", "m64n112", "m128n160.w2", "m192n128", "m256n128")
# Two CTAs do all tiles, so that pipelines and output tiles are reused.
NUM_SMS = 2


def _configs() -> dict[str, dict]:
    """Returns all clusters of some tiles, and everything with 1x128 scales on both sides."""
    chosen = {}
    for key, config in dense_configs().items():
        usual = key.endswith(".e4m3.e4m3.bf16") and any(f".{tile}." in key for tile in TILES)
        if usual or (config["scaling"] == "1d1d" and ".e4m3.e4m3." in key):
            chosen[key] = config
    return chosen


def main(implementation: str) -> None:
    """Runs and checks every call; raises on a wrong result."""
    for case in CASES:
        lhs, rhs = operands_for(case, implementation)
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
            accumulator = jax.device_put(
                normal((case.m, case.n), 3, dtype), device_for(implementation)
            )
            for given in (None, accumulator):
                call = gemm_with(implementation, preferred_element_type=dtype, accumulator=given)
                assert_close(call(lhs, rhs), lhs, rhs, given, implementation=implementation)
    case = GemmCase("sanitized", 300, 200, 1024)
    for key, config in _configs().items():
        if implementation == "sim" and not config["simulated"]:
            continue
        dtype = jnp.dtype(config["d_type"])
        block = (1, 128) if config["scaling"] == "1d1d" else (128, 128)
        lhs, rhs = operands_for(case, implementation, rhs_block=block)
        start = jax.device_put(normal((case.m, case.n), 3, dtype), device_for(implementation))
        accumulator = start if config["accumulate"] else None
        out = with_config(key, dtype, implementation, NUM_SMS)(lhs, rhs, accumulator)
        assert_close(out, lhs, rhs, accumulator, implementation=implementation)
        print(key, flush=True)
    print("all results are right")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
