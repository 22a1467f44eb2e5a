# SPDX-License-Identifier: Apache-2.0
"""A linear layer of a language model in FP8: a block-scaled GEMM inside `jax.jit`.

The activations are the last 16 characters of every position of a text, each character through a
fixed projection. The weights are fitted to them by least squares, so that the layer's outputs score
what the next four characters are. The text is the source of the Python standard library: real data
on every machine. Run it with `make demo`, or `python examples/01_dense.py` where the package is
installed.
"""

import argparse
import inspect
import statistics
import tarfile
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np

import jax_fp8gemm as fp8

M, N, K = 4096, 4 * 256, 16 * 64  # positions, scores of four characters, features
KERNEL = "jax_fp8gemm.gemm"  # how the custom call's name begins


def library_text() -> np.ndarray:
    """Returns the source of some modules of the standard library as bytes."""
    modules = (argparse, inspect, statistics, tarfile, typing)
    return np.frombuffer("".join(map(inspect.getsource, modules)).encode(), np.uint8)


def activations_and_targets(text: np.ndarray, positions: np.ndarray):
    """Returns features (M, K) of what precedes each position, and targets (M, N), one-hot."""
    projection = np.random.default_rng(0).normal(size=(256, 64)) / 8
    before = np.stack([text[positions - lag] for lag in range(1, 17)], 1)
    after = np.stack([text[positions + ahead] for ahead in range(4)], 1)
    features = projection[before] / np.arange(1, 17)[:, None] ** 0.5  # the last one counts most
    return features.reshape(-1, K), np.eye(256)[after].reshape(-1, N)


def seconds_per_call(function, *arguments) -> float:
    """Returns the time of one call among several that were started back to back."""
    jax.block_until_ready(function(*arguments))
    best, calls = float("inf"), 1
    while calls <= 100 and calls * min(best, 1) <= 1:
        start = time.perf_counter()
        jax.block_until_ready([function(*arguments) for _ in range(calls)])
        best, calls = min(best, (time.perf_counter() - start) / calls), 10 * calls
    return best


def report(title: str, x, weight: fp8.BlockScaled, exact: np.ndarray, implementation) -> np.ndarray:
    """Runs the layer inside jax.jit, prints what it did and returns its output."""

    @jax.jit
    def layer(x, weight):
        return fp8.gemm(fp8.quantize(x), weight, implementation=implementation)

    start = time.perf_counter()
    compiled = layer.lower(x, weight).compile()
    compile_seconds = time.perf_counter() - start
    has_kernel = KERNEL in compiled.as_text()  # what XLA really made of it
    seconds = seconds_per_call(compiled, x, weight)
    out = np.asarray(compiled(x, weight), np.float64)

    # The error of the product alone, and that together with the rounding of the operands.
    lhs, rhs = (np.asarray(a.dequantize(), np.float64) for a in (fp8.quantize(x), weight))
    own_error = rms(out - lhs @ rhs.T) / rms(lhs @ rhs.T)
    error = rms(out - exact) / rms(exact)

    (m, k), n = x.shape, weight.shape[0]
    tflops = 2e-12 * m * n * k / seconds
    where = {"gpu": "Hopper kernel", "cpu": "kernel source in the CPU simulator"}
    ran = where[jax.default_backend()] if has_kernel else "XLA, no custom kernel"
    print(f"{title}: ({m}, {k}) x ({n}, {k})^T -> ({m}, {n}) bfloat16")
    print(f"  implementation        {ran}, on {jax.devices()[0].device_kind}")
    print(f"  compiled in           {compile_seconds:.2f} s")
    print(f"  time per call         {seconds * 1e3:.3f} ms, {tflops:.3g} TFLOPS")
    print(f"  error of the gemm     {own_error:.2e}  (rms, against float64)")
    print(f"  with quantization     {error:.2e}  (rms, against float64)")
    return out


def rms(x: np.ndarray) -> float:
    """Returns the root of the mean square."""
    return float(np.sqrt(np.mean(x * x)))


def main() -> None:
    """Fits the weights, then runs the layer on characters that it has not seen."""
    text = library_text()
    positions = np.random.default_rng(1).permutation(np.arange(16, len(text) - 4))
    seen, unseen = positions[: 4 * M], positions[4 * M : 5 * M]
    features, targets = activations_and_targets(text, seen)
    penalty = 10 * np.eye(K)
    weights = np.linalg.solve(features.T @ features + penalty, features.T @ targets).T  # (N, K)

    features, targets = activations_and_targets(text, unseen)
    exact = features @ weights.T
    x = jnp.asarray(features, jnp.bfloat16)
    weight = fp8.quantize(jnp.asarray(weights, jnp.float32), block=(128, 128))

    out = report("Dense layer", x, weight, exact, hopper_or_xla())
    right = [
        np.mean(scores[:, :256].argmax(1) == targets[:, :256].argmax(1)) for scores in (out, exact)
    ]
    print(f"  next character right  {right[0]:.2%}, and {right[1]:.2%} with float64 throughout")

    if jax.default_backend() == "cpu":
        small, part = x[:64, :512], weights[:256, :512]
        weight = fp8.quantize(jnp.asarray(part, jnp.float32), block=(128, 128))
        print()
        try:
            report("Simulator", small, weight, features[:64, :512] @ part.T, "sim")
        except jax.errors.JaxRuntimeError as error:
            if "the simulator without its kernels" not in str(error):
                raise
            print("Simulator: `make demo` leaves its kernels out, `make test` builds them")


def hopper_or_xla() -> str | None:
    """Returns the implementation to ask for: the default, but "xla" on GPUs before Hopper."""
    device = jax.devices()[0]
    is_hopper = getattr(device, "compute_capability", None) == "9.0"
    return None if device.platform == "cpu" or is_hopper else "xla"


if __name__ == "__main__":
    main()
