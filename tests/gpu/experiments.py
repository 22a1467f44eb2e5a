# SPDX-License-Identifier: Apache-2.0
"""Small experiments on what nobody could know without a GPU, the least risky first:

    python tests/gpu/experiments.py NAME [cuda|sim]

Prints what is expected, runs, and prints what came: one JSON object a line. The exit status is 3
where the two differ. `.ci/gpu-check` gives each a process, since some may end it. With "sim" the
products run simulated; whatever asks the driver itself still asks libcuda.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent

UNEXPECTED = 3
_SAME_BYTES = "the model's bytes"
_RIGHT = "right"
_SAME_BITS = "the same bits every time"
_TRAP = "error 715"
# What the heuristics assume of 132 SMs where they cannot ask a driver.
_CLUSTERS = "66 of 2, 31 of 4, 15 of 8"
_REPEATS = {"cuda": 10_000, "sim": 3}
_IN_A_ROW = 100  # launches before their results are looked at
_REPEATING_S = 8  # for each number of splits

# What came, and more to keep.
Outcome = tuple[str, dict]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is run on an implementation, and what should come."""

    expected: str
    run: Callable[[str], Outcome]
    limit_s: float = 30


# ---- The driver alone ----------------------------------------------------------------------------


def _gpu():
    """Returns the GPU with the micro-kernels, and by whose compiler and for which driver."""
    import worlds
    from drivers import CudaGpu

    nvrtc = worlds.find_all()[0]
    gpu = CudaGpu(worlds.compile_for_gpu(nvrtc).cubin)
    return gpu, {"nvrtc": nvrtc.name, **gpu.describe()}


def _run_case(case) -> Outcome:
    from catalogue import KERNELS
    from drivers import DriverError

    gpu, machine = _gpu()
    try:
        output = gpu.run(KERNELS[case.kernel], case.problem)
    except DriverError as error:
        return f"error {error.status}", {**machine, "message": str(error)}
    wrong = [
        i for i, pair in enumerate(zip(output, case.expected, strict=True)) if len({*pair}) > 1
    ]
    if wrong:
        return f"{len(wrong)} of {len(output)} bytes differ", {**machine, "bytes": wrong[:20]}
    return _SAME_BYTES, machine


def _known_case(name: str) -> Callable[[str], Outcome]:
    def run(_: str) -> Outcome:
        import worlds

        return _run_case(worlds.all_cases()[name])

    return run


def _trapping_case(index: int) -> Callable[[str], Outcome]:
    def run(_: str) -> Outcome:
        import tma_cases

        return _run_case(tma_cases.trapping()[index])

    return run


def _clusters(_: str) -> Outcome:
    """With the threads and the shared memory of the dense kernels: one CTA fills an SM."""
    from _special_problems import PAIR
    from catalogue import KERNELS

    from jax_fp8gemm._src.native import extension

    smem_bytes = extension.core().describe_config(PAIR)["smem_bytes"]
    gpu, machine = _gpu()
    found = []
    for size in (2, 4, 8):
        kernel = dataclasses.replace(
            KERNELS["register_budgets"], smem_bytes=smem_bytes, cluster=size
        )
        found.append(f"{gpu.max_active_clusters(kernel)} of {size}")
    return ", ".join(found), {**machine, "smem_bytes": smem_bytes}


# ---- Products ------------------------------------------------------------------------------------


def _result(problem, implementation: str, config: str = "") -> str:
    import numpy as np
    from _kinds import operands_of
    from _problems import mismatch, product

    operands = operands_of(problem, implementation)
    out = product(problem, operands, config=config, backend=implementation)
    return mismatch(problem, np.asarray(out), implementation=implementation) or _RIGHT


def _jitted_gemm(implementation: str) -> Outcome:
    import jax
    import jaxlib
    import numpy as np
    from _dense import gemm_with, operands_for
    from cases import GemmCase

    from jax_fp8gemm.testing import relative_error

    lhs, rhs = operands_for(GemmCase("jitted", 130, 264, 400), implementation)
    out = jax.jit(gemm_with(implementation))(lhs, rhs)
    wide = (np.asarray(x.dequantize(np.float32), np.float64) for x in (lhs, rhs))
    want = np.matmul(next(wide), next(wide).T)
    error = relative_error(np.asarray(out, np.float64), want)
    notes = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "error": error}
    return _RIGHT if error < 1e-4 else f"relative error {error:.3g}", notes


def _three_consumers(implementation: str) -> Outcome:
    from _problems import problem_for
    from _special_problems import kernel

    config = kernel("1d2d.m192n128.w3.c1x1.e4m3.e4m3.bf16")
    return _result(problem_for(config), implementation, config), {"config": config}


def _ragged(implementation: str) -> Outcome:
    from _problems import Problem

    return _result(Problem("ragged", 200, 136, 400, (64, 66, 70), 3), implementation), {}


def _moved_buffers(implementation: str) -> Outcome:
    import graph_program

    report = graph_program.replay_moved(implementation)
    wrong = [text for text, is_so in (
        (f"replays {report['mismatches']} differ", report["mismatches"]),
        ("no buffer moved", report["distinct_addresses"] < 2),
    ) if is_so]  # fmt: skip
    return ", ".join(wrong) or _SAME_BITS, report


def _split_k(implementation: str) -> Outcome:
    """Back to back; fewer than 10,000 where the time is over."""
    from _problems import problem_for
    from _special_problems import kernel

    notes, wrong = {}, []
    for tile, splits in (("m64n64", 2), ("m64n64", 4), ("m64n128", 8)):
        config = kernel(f"1d2d.{tile}.w1.c1x1.e4m3.e4m3.bf16.split{splits}")
        repeats, different = _repeat(problem_for(config), implementation, config)
        notes[config] = repeats
        if different:
            wrong.append(f"split {splits}: {different} of {repeats} differ")
    return ", ".join(wrong) or _SAME_BITS, notes


def _repeat(problem, implementation: str, config: str) -> tuple[int, int]:
    """Returns how often a product ran, and how often its bits were not those of the first run."""
    import jax
    import jax.numpy as jnp
    from _kinds import operands_of
    from _problems import product

    operands = operands_of(problem, implementation)
    call = jax.jit(lambda given: product(problem, given, config=config, backend=implementation))

    def bits(x):
        return jax.lax.bitcast_convert_type(x, jnp.uint16)

    def differs(outs, first):
        return sum((bits(out) != bits(first)).any().astype(jnp.int32) for out in outs)

    count = jax.jit(differs)
    first = call(operands)
    done = different = 0
    deadline = time.monotonic() + _REPEATING_S
    while done < _REPEATS[implementation] and time.monotonic() < deadline:
        number = min(_IN_A_ROW, _REPEATS[implementation] - done)
        different += int(count([call(operands) for _ in range(number)], first))
        done += number
    return done, different


# The least risky first: questions, then single launches, then what ends a context or may hang.
EXPERIMENTS = {
    "newest_nvrtc": Experiment(_SAME_BYTES, _known_case("special_registers")),
    "clusters_that_fit": Experiment(_CLUSTERS, _clusters),
    "store_past_a_row": Experiment(
        _SAME_BYTES, _known_case("tma_store.bf16.sw128.past_right_and_bottom")
    ),
    "jitted_gemm": Experiment(_RIGHT, _jitted_gemm),
    "three_consumers": Experiment(_RIGHT, _three_consumers),
    "ragged_64_66_70": Experiment(_RIGHT, _ragged),
    "moved_buffers": Experiment(_SAME_BITS, _moved_buffers),
    "load_from_1": Experiment(_TRAP, _trapping_case(0)),
    "store_from_1": Experiment(_TRAP, _trapping_case(1)),
    "split_k_repeated": Experiment(_SAME_BITS, _split_k, 3 * _REPEATING_S + 20),
}


def main(name: str, implementation: str = "cuda") -> int:
    """Runs one experiment; returns the exit status."""
    sys.path += [str(HERE.parent), str(HERE), str(HERE.parent / "conformance")]
    experiment = EXPERIMENTS[name]
    if implementation == "sim":
        os.environ["JAX_PLATFORMS"] = "cpu"
    print(json.dumps({"experiment": name, "expected": experiment.expected}), flush=True)
    got, notes = experiment.run(implementation)
    print(json.dumps({"got": got, **notes}), flush=True)
    return 0 if got == experiment.expected else UNEXPECTED


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
