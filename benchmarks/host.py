# SPDX-License-Identifier: Apache-2.0
"""What a call costs before a kernel runs: tracing, lowering and calling, beside jax.numpy's dot.

In CPU seconds of one process, in turns, so that a busy machine changes ratios little.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

import jax_fp8gemm as fp8

SHAPES = 12
CALLS = 300
_IMPORT = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"


def _cpu_seconds(f: Callable[[], object]) -> float:
    start = time.process_time()
    f()
    return time.process_time() - start


def _lowered(product: Callable, rows: int) -> None:
    """Traces and lowers a product of a new shape with both gradients, for a GPU."""
    x = jax.ShapeDtypeStruct((rows, 1024), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((1024, 512), jnp.bfloat16)
    loss = jax.grad(lambda x, w: product(x, w).astype(jnp.float32).sum(), (0, 1))
    jax.jit(loss).trace(x, w).lower(lowering_platforms=("cuda",))


def tracing(shapes: int) -> dict[str, float]:
    """Returns seconds per new shape, of `dot` and `jnp.dot` in turns."""
    products = {"ours": fp8.dot, "jax": jnp.dot}
    for product in products.values():
        _lowered(product, 8)
    samples: dict[str, list[float]] = {name: [] for name in products}
    for i in range(shapes):
        for name, product in products.items():
            samples[name].append(_cpu_seconds(lambda p=product, i=i: _lowered(p, 16 + 8 * i)))
    return {name: statistics.median(each) for name, each in samples.items()}


def calling(calls: int, *, jit: bool) -> dict[str, float]:
    """Returns seconds per call of `gemm` and `jnp.dot`, on the CPU and of the smallest kind."""
    lhs = fp8.quantize(jnp.ones((8, 128)))
    rhs = fp8.quantize(jnp.ones((128, 128)), (128, 128))
    x, w = jnp.ones((8, 128)), jnp.ones((128, 128))
    functions = {"ours": (fp8.gemm, (lhs, rhs)), "jax": (jnp.dot, (x, w))}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(5):
        for name, (f, arguments) in functions.items():
            f = jax.jit(f) if jit else f
            f(*arguments).block_until_ready()

            def repeat(f=f, arguments=arguments):
                for _ in range(calls):
                    f(*arguments).block_until_ready()

            samples[name].append(_cpu_seconds(repeat) / calls)
    return {name: statistics.median(each) for name, each in samples.items()}


def importing() -> dict[str, float]:
    """Returns seconds of an import in a new process; ours imports jax."""
    modules = {"ours": "jax_fp8gemm", "jax": "jax"}
    return {
        name: float(subprocess.check_output([sys.executable, "-c", _IMPORT.format(module)]))
        for name, module in modules.items()
    }


def first_call() -> dict[str, float]:
    """Returns seconds of the first product of a process that has imported, compiling it."""
    calls = {
        "ours": "jax_fp8gemm.dot(jnp.ones((8, 128)), jnp.ones((128, 128)))",
        "jax": "jnp.dot(jnp.ones((8, 128)), jnp.ones((128, 128)))",
    }
    text = "import jax_fp8gemm, time, jax.numpy as jnp; t = time.process_time(); {}"
    text += ".block_until_ready(); print(time.process_time() - t)"
    return {
        name: float(subprocess.check_output([sys.executable, "-c", text.format(call)]))
        for name, call in calls.items()
    }


def measure(shapes: int = SHAPES, calls: int = CALLS) -> dict[str, dict[str, float]]:
    """Returns all of them by name."""
    return {
        "trace and lower a product of a new shape with both gradients": tracing(shapes),
        "call a jitted product": calling(calls, jit=True),
        "call a product": calling(calls, jit=False),
        "import": importing(),
        "first product of a process": first_call(),
    }


def table(measured: dict[str, dict[str, float]]) -> str:
    """Returns a table in CPU milliseconds."""
    lines = ["| CPU time of | ours, ms | jax.numpy, ms | ratio |", "|---|---|---|---|"]
    for name, each in measured.items():
        ours, theirs = 1e3 * each["ours"], 1e3 * each["jax"]
        lines.append(f"| {name} | {ours:.3g} | {theirs:.3g} | {ours / theirs:.2f} |")
    return "\n".join(lines)


def run(output: Path) -> int:
    """Measures, prints, and writes host.json; returns the exit status."""
    measured = measure()
    output.mkdir(parents=True, exist_ok=True)
    (output / "host.json").write_text(json.dumps(measured, indent=1))
    print(table(measured))
    return 0
