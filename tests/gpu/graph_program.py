# SPDX-License-Identifier: Apache-2.0
"""Replays a program that XLA captures as a graph: python graph_program.py cuda|sim.

A process of its own, because XLA reads its flags once. Prints a JSON report as its last line.
"""

import json
import sys

import cases
import jax
import jax.numpy as jnp
import numpy as np

import jax_fp8gemm as fp8

CHAIN_LENGTH = 6  # more than XLA's least number of kernels in a graph
SIZE = 256
REPLAYS = 12


def replay_moved(implementation: str) -> dict:
    """Runs the chain on new buffers each time and compares with single products."""
    weight = fp8.quantize(cases.normal((SIZE, SIZE), 1), (128, 128))

    def layer(x, accumulator):
        return fp8.gemm(
            fp8.quantize(x / 16),
            weight,
            accumulator=accumulator,
            implementation=implementation,
        )

    def chain(x, accumulator):
        for _ in range(CHAIN_LENGTH):
            x = layer(x, accumulator)
        return x

    graph, single = jax.jit(chain), jax.jit(layer)
    kept, mismatches = [], []
    rows = SIZE // 2 if implementation == "cuda" else 16
    for replay in range(REPLAYS):
        x, accumulator = (
            cases.normal((rows, SIZE), seed, jnp.bfloat16) for seed in (2 * replay, 2 * replay + 1)
        )
        out = graph(x, accumulator)
        kept.append((x, accumulator, out))  # so that the next replay gets other memory
        want = x
        for _ in range(CHAIN_LENGTH):
            want = single(want, accumulator)
        if np.asarray(out).tobytes() != np.asarray(want).tobytes():
            mismatches.append(replay)
    addresses = {out.unsafe_buffer_pointer() for _, _, out in kept}
    return {"replays": REPLAYS, "mismatches": mismatches, "distinct_addresses": len(addresses)}


if __name__ == "__main__":
    print(json.dumps(replay_moved(sys.argv[1])))
