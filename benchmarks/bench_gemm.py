# SPDX-License-Identifier: Apache-2.0
"""Times `gemm` on the problems of tests/cases.py: python benchmarks/bench_gemm.py [--help].

Each problem is a chain of independent calls in one jitted program, every call with a weight of its
own, so that no weight is in the L2 cache when its call begins. The time of a call is the
program's divided by the number of calls, best of several runs; gaps between launches are in it.
Operands are normally distributed. Rows go to standard output as CSV.
"""

import argparse
import csv
import importlib.metadata
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

import jax_fp8gemm as fp8

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import cases  # noqa: E402

CASES = {
    "prefill": cases.PREFILL_CASES,
    "decode": cases.DECODE_CASES,
    "square": cases.SQUARE_CASES,
}
PEAK_TFLOPS = 1979  # dense float8 of an H100 SXM or H200, by their data sheets
COLD_BYTES = 256 << 20  # distinct weights per program: several times the 50 MB of L2
MAX_CALLS = 16
MIN_SECONDS = 0.5
COLUMNS = ("case", "m", "n", "k", "what", "microseconds", "tflops", "percent_of_peak", "gb_per_s")


def contenders(is_gpu: bool) -> dict[str, Callable]:
    """Returns what is timed: functions of a quantised lhs and rhs."""
    ours = "cuda" if is_gpu else "xla"
    wide = jnp.bfloat16 if is_gpu else jnp.float32

    def dense(lhs, rhs):
        return jnp.matmul(lhs, rhs.T, preferred_element_type=wide)

    return {
        f"gemm {ours}": lambda lhs, rhs: fp8.gemm(lhs, rhs, implementation=ours),
        f"dot {jnp.dtype(wide).name}": dense,
    }


def seconds_per_call(function: Callable, lhs, weights: list) -> float:
    """Returns the best time of one of the calls in one program."""
    program = jax.jit(lambda lhs, weights: [function(lhs, rhs) for rhs in weights])
    jax.block_until_ready(program(lhs, weights))
    best, spent, runs = float("inf"), 0.0, 0
    while spent < MIN_SECONDS or runs < 3:
        start = time.perf_counter()
        jax.block_until_ready(program(lhs, weights))
        elapsed = time.perf_counter() - start
        best, spent, runs = min(best, elapsed), spent + elapsed, runs + 1
    return best / len(weights)


def measure(case: cases.GemmCase, is_gpu: bool):
    """Yields a row per contender."""
    most = MAX_CALLS if is_gpu else 1
    calls = max(1, min(most, -(-COLD_BYTES // (case.n * case.k))))
    lhs = fp8.quantize(cases.normal((case.m, case.k), seed=0))
    weights = [
        fp8.quantize(cases.normal((case.n, case.k), seed=1 + i), (128, 128)) for i in range(calls)
    ]
    wide = jnp.bfloat16 if is_gpu else jnp.float32
    for what, function in contenders(is_gpu).items():
        is_dot = what.startswith("dot")
        operands = (lhs, weights)
        if is_dot:
            operands = (lhs.dequantize(wide), [rhs.dequantize(wide) for rhs in weights])
        seconds = seconds_per_call(function, *operands)
        element = jnp.dtype(wide).itemsize if is_dot else 1
        moved = element * (case.m + case.n) * case.k + 2 * case.m * case.n
        flops = 2 * case.m * case.n * case.k / seconds
        peak = f"{flops / PEAK_TFLOPS / 1e10:.1f}" if is_gpu else ""
        yield (
            *(case.name, case.m, case.n, case.k, what, f"{seconds * 1e6:.1f}"),
            *(f"{flops / 1e12:.4g}", peak, f"{moved / seconds / 1e9:.0f}"),
        )


def main() -> None:
    """Prints what it runs on, then a row per problem and contender."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--max-gflop", type=float, help="skip larger problems (20 on a CPU)")
    arguments = parser.parse_args()
    device = jax.devices()[0]
    is_gpu = device.platform == "gpu"
    most = arguments.max_gflop or (float("inf") if is_gpu else 20)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib")]
    print(f"# {device.device_kind}, {', '.join(versions)}, {time.strftime('%Y-%m-%d')}")
    writer = csv.writer(sys.stdout)
    writer.writerow(COLUMNS)
    for group in arguments.cases:
        for case in CASES[group]:
            if 2e-9 * case.m * case.n * case.k <= most:
                for row in measure(case, is_gpu):
                    writer.writerow(row)
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
