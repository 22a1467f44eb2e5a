# SPDX-License-Identifier: Apache-2.0
"""Small calls of every kernel family, to be run under compute-sanitizer:

    compute-sanitizer --tool memcheck python tests/gpu/sanitizer_program.py [cuda|sim [FAMILY...]]

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

import functools  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from _dense import assert_close, device_for, gemm_with, operands_for  # noqa: E402
from _kinds import operands_of  # noqa: E402
from _problems import Problem, mismatch, problem_for, product  # noqa: E402
from _special_problems import KEYS, SPECIAL  # noqa: E402
from cases import GROUPED_CASES, GemmCase, normal  # noqa: E402

import jax_fp8gemm as fp8  # noqa: E402
from jax_fp8gemm._src.native import extension  # noqa: E402

# Tails in every dimension; more K blocks than the deepest pipeline has stages.
CASES = (
    GemmCase("sanitized", 1, 136, 128),
    GemmCase("sanitized", 33, 77, 301),
    GemmCase("sanitized", 130, 264, 2208),
)
# The start of a key, by family; every tile and cluster of it runs.
FAMILIES = {
    "dense": "1d2d.",
    "wgrad": "1d1d.",
    "split_k": "1d2d.",
    "ragged": "1d2d_ragged.",
    "contiguous": "1d2d_contiguous.",
    "masked": "1d2d_masked.",
    "k_grouped": "1d1d_kgrouped.",
}
# Few CTAs do all tiles, so that pipelines and output tiles are reused.
NUM_SMS = 4
# A GPU goes through every third tile, the simulator through a few.
STEP = {"cuda": 3, "sim": 40}


def _keys(family: str, implementation: str) -> list[str]:
    """Returns configurations of a family with the usual types, spread over its tiles."""
    result = "" if FAMILIES[family].startswith("1d1d") else ".bf16"
    keys = [
        key
        for key in KEYS
        if key.startswith(FAMILIES[family])
        and f".e4m3.e4m3{result}" in key
        and (".split" in key) == (family == "split_k")
    ]
    return keys[:: STEP[implementation]]


def _check_problem(problem: Problem, key: str, implementation: str) -> None:
    num_sms = None if ".split" in key else NUM_SMS
    operands = operands_of(problem, implementation)
    out = product(problem, operands, config=key, num_sms=num_sms, backend=implementation)
    wrong = mismatch(problem, np.asarray(out), implementation=implementation)
    if wrong:
        raise ArithmeticError(f"{key} on {problem}: {wrong}")
    print(key, flush=True)


def _check_dense_calls(implementation: str) -> None:
    for case in CASES:
        lhs, rhs = operands_for(case, implementation)
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
            accumulator = jax.device_put(
                normal((case.m, case.n), 3, dtype), device_for(implementation)
            )
            for given in (None, accumulator):
                call = gemm_with(implementation, preferred_element_type=dtype, accumulator=given)
                assert_close(call(lhs, rhs), lhs, rhs, given, implementation=implementation)


def _check_quantizers(implementation: str) -> None:
    """Odd shapes of every quantizer, and groups, against plain JAX."""
    shape = (67, 131) if implementation == "sim" else (517, 1027)
    blocks = functools.partial(fp8.quantize, block=(128, 128))
    calls = [(f, (normal(shape, 1),)) for f in (fp8.quantize, blocks, fp8.quantize_transposed)]
    for case in GROUPED_CASES:
        calls.append((fp8.quantize_k_grouped, (normal((case.num_rows, 70), 2), case.group_sizes)))
    for quantize, arguments in calls:
        arguments = jax.device_put(arguments, device_for(implementation))
        got, want = (quantize(*arguments, implementation=i) for i in (implementation, "xla"))
        np.testing.assert_array_equal(*(np.asarray(x.dequantize(jnp.float32)) for x in (got, want)))


def main(implementation: str, *families: str) -> None:
    """Runs and checks every call of some families, or of all; raises on a wrong result."""
    for family in families or (*FAMILIES, "quantizers"):
        if family == "quantizers":
            _check_quantizers(implementation)
            continue
        if family == "dense":
            _check_dense_calls(implementation)
        for key in _keys(family, implementation):
            _check_problem(problem_for(key), key, implementation)
        kind = extension.core().describe_config(_keys(family, implementation)[0])["kind"]
        for problem, key in SPECIAL.values():
            if problem.kind == kind != "dense":
                _check_problem(problem, key, implementation)
    print("all results are right")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["cuda"]))
