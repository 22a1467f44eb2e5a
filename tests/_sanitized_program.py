# SPDX-License-Identifier: Apache-2.0
"""Products and quantizers by XLA, simulated by a build with a sanitizer, whose library is loaded.

Run by test_sanitized_products.py; with "fault" a quantizer whose last result is a few bytes too
small, which the sanitizer must see.
"""

import ctypes
import functools
import itertools
import sys
import tempfile
import threading
from pathlib import Path

import _builds
import _sanitizers

_sanitizers.use_extension()

import _problems  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from _quantizers import GROUPED_QUANTIZERS, QUANTIZERS  # noqa: E402
from fuzz import custom_calls  # noqa: E402
from truth import _xla_stand_in as stand_in  # noqa: E402

import jax_fp8gemm as fp8  # noqa: E402
from jax_fp8gemm._src.native import extension  # noqa: E402


def sample() -> list[str]:
    """Returns the keys of the products that the build has, in csrc/sim/kernels' order."""
    core = extension.core()
    names = ("family", "a_type", "b_type", "d_type", "accumulate")

    def types(key: str) -> list:
        described = core.describe_config(key)
        return [described[name] for name in names]

    keys = []
    for _, group in itertools.groupby(core.candidate_configs(), types):
        plain = list(group)
        pdl = [f"{key}.pdl" for key in plain]
        keys += plain + [key for key in pdl if core.describe_config(key)["simulated"]]
    return keys[:: _builds.SAMPLE]


def run_products(keys: list[str]) -> None:
    for key in keys:
        problem = _problems.problem_for(key)
        if wrong := _problems.mismatch(problem, _problems.run(problem, config=key)):
            raise AssertionError(f"{key}: {wrong}")


def run_quantizers() -> None:
    """All layouts, of every dtype."""
    x = np.random.default_rng(0).standard_normal((2, 133, 272), np.float32)
    sizes = jnp.asarray([100, 0, 30], jnp.int32)
    weight = jnp.asarray(x[0, 0])
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        array = jnp.asarray(x, dtype)
        for quantize in QUANTIZERS.values():
            compare(quantize, array)
        for quantize in (*GROUPED_QUANTIZERS.values(), fp8.quantize):
            compare(functools.partial(quantize, group_sizes=sizes), array[0])
        compare(fp8.quantize, fp8.rms_norm(array, weight))
        for activation in (fp8.swiglu(array, array), fp8.geglu(array, array), fp8.gelu(array)):
            compare(fp8.quantize, activation, 0.13)  # a step of float8, next to a tie


def compare(quantize, x, tolerance: float = 0) -> None:
    """Checks that the simulated kernel gives what plain JAX does."""
    got, want = (jax.tree.leaves(quantize(x, implementation=kind)) for kind in ("sim", "xla"))
    for a, b in zip(got, want, strict=True):
        a, b = (np.asarray(each, np.float32) for each in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance)


def plant_a_fault() -> None:
    """Runs a quantizer as XLA does, with too little memory."""
    call = next(c for c in custom_calls.calls() if c["target"] == extension.QUANTIZE_TARGET)
    memories = [custom_calls.Memory(call[kind]) for kind in ("operands", "results")]
    arguments, results = (
        [stand_in.buffer(*each) for each in memory.buffers] for memory in memories
    )
    allocate = ctypes.CDLL(None).malloc
    allocate.restype = ctypes.c_size_t
    results[-1].data = allocate(memories[1].sizes[-1] - 4)
    with tempfile.TemporaryDirectory() as folder:
        handler = extension.core().registrations()["quantize"]["sim"]
        xla = custom_calls.build(Path(folder))
        xla.call(
            handler, stand_in.EXECUTE, stand_in.Context(), arguments, results, call["attributes"]
        )


def main() -> None:
    """Runs all, from two threads at once."""
    keys, failures = sample(), []

    def attempt(function, *arguments) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            failures.append(repr(error))

    # Guards around operands are for one thread; the other's quantizers have none.
    threads = [
        threading.Thread(target=attempt, args=(run_products, keys)),
        threading.Thread(target=attempt, args=(run_quantizers,)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit("\n".join(failures))
    print(len(keys), "products")


if __name__ == "__main__":
    plant_a_fault() if "fault" in sys.argv[1:] else main()
