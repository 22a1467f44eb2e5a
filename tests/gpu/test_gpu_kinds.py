# SPDX-License-Identifier: Apache-2.0
"""Every kind of product on a GPU: each kernel, the edges of groups, graphs, repeated calls.

The problems are those of the simulator suite. Tiles take turns at the dtypes; with
FP8GEMM_LONG_SWEEP=1 every configuration runs. The small tests also run simulated.
"""

import dataclasses
import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if importlib.util.find_spec("jax_fp8gemm._core") is None:
    pytest.skip("needs the compiled extension jax_fp8gemm._core", allow_module_level=True)

from _dense import assert_same_bits
from _kinds import check, operands_of
from _problems import BLOCK, Problem, exact, problem_for, product, segments
from _special_problems import KEYS, SPECIAL, kernel

import jax_fp8gemm as fp8
from jax_fp8gemm._src.native import extension as extension_lib
from jax_fp8gemm.testing import simulator

LONG_SWEEP = os.environ.get("FP8GEMM_LONG_SWEEP", "") not in ("", "0")
REPETITIONS = {"cuda": 100, "sim": 3}
FEW_SMS = 5
FAMILIES = ("dense", "wgrad", "split_k", "ragged", "contiguous", "masked", "k_grouped")


def family_of(key: str) -> str:
    """Returns the family of a configuration, as `gpu-check` runs them."""
    config = extension_lib.core().describe_config(key)
    if config["split_k"] > 1:
        return "split_k"
    if config["kind"] == "dense":
        return "wgrad" if config["scaling"] == "1d1d" else "dense"
    return config["kind"]


def _chosen() -> list[str]:
    """Returns one kernel of each family, tile and cluster; or all."""
    if LONG_SWEEP:
        return list(KEYS)
    # The part of the key before the types of operands; then each has another type of result.
    tiles: dict[str, list[str]] = {}
    for key in KEYS:
        tiles.setdefault(key.split(".e4m3")[0].split(".e5m2")[0], []).append(key)
    return [keys[i % len(keys)] for i, keys in enumerate(tiles.values())]


CHOSEN = _chosen()
SIMULATED = (
    kernel("1d2d.m16n64.w1.c1x1.e4m3.e4m3.bf16.split4"),
    kernel("1d2d_ragged.m64n64.w1.c1x1.e4m3.e4m3.bf16"),
    kernel("1d2d_contiguous.m128n128.w2.c1x2.e4m3.e4m3.bf16"),
    kernel("1d2d_masked.m16n64.w1.c1x1.e4m3.e4m3.bf16"),
    kernel("1d1d.m64n64.w1.c1x1.e4m3.e4m3.f32"),
    kernel("1d1d_kgrouped.m128n128.w2.c2x1.e4m3.e4m3.f32.acc"),
)
# A small problem of each family; groups of 127, 0, 1 and 129.
TYPICAL = {
    "dense": Problem("dense", 200, 136, 400),
    "wgrad": Problem("dense", 136, 200, 400, rhs_is_1x128=True, dtype="float32"),
    "split_k": Problem("dense", 16, 128, 2048),
    "ragged": Problem("ragged", 300, 136, 200, (127, 0, 1, 129), 4),
    "contiguous": Problem("contiguous", 384, 136, 200, (1,) * 127 + (-1,) + (0,) * 256, 3),
    "masked": Problem("masked", 130, 136, 200, (127, 0, 1, 129), 4),
    "k_grouped": Problem(
        "k_grouped", 72, 136, 640, (127, 0, 1, 129), 4, rhs_is_1x128=True, dtype="float32"
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def compiled():
    """Compiles what the tests below run, as many at a time as the machine has cores."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(extension_lib.core().precompile, CHOSEN))


@pytest.mark.hopper
@pytest.mark.parametrize("key", CHOSEN, ids=lambda key: f"{family_of(key)}-{key}")
def test_configuration(extension, compiled, key):
    for num_sms in (
        None,
        FEW_SMS if extension_lib.core().describe_config(key)["split_k"] == 1 else None,
    ):
        check(problem_for(key), "cuda", config=key, num_sms=num_sms)


@pytest.mark.parametrize("key", SIMULATED)
def test_configuration_simulated(simulated, key):
    """One of each family, by the same code."""
    check(problem_for(key), "sim", config=key)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SPECIAL)
def test_special_problem(implementation, name):
    problem, key = SPECIAL[name]
    if implementation == "sim" and problem.k > 4096:
        pytest.skip("the simulator suite runs this one")
    check(problem, implementation, config=key)


def _many_groups(kind: str, num_groups: int) -> Problem:
    """Returns groups of random sizes, about a third of them empty."""
    rng = np.random.default_rng(num_groups)
    sizes = tuple(int(s) for s in rng.integers(0, 150, num_groups) * (rng.random(num_groups) < 0.7))
    if kind == "ragged":
        return Problem(kind, sum(sizes) + 37, 136, 272, sizes, num_groups)
    if kind == "masked":
        return Problem(kind, 150, 136, 272, sizes, num_groups)
    if kind == "contiguous":
        ids = [i for g, s in enumerate(sizes) for i in [g] * s + [-1] * (-s % BLOCK)]
        return Problem(kind, len(ids) + BLOCK, 136, 272, (*ids, *[-1] * BLOCK), num_groups)
    k = sum(-(-s // BLOCK) for s in sizes) * BLOCK + 2 * BLOCK
    return Problem(kind, 72, 40, k, sizes, num_groups, rhs_is_1x128=True, dtype="float32")


@pytest.mark.hopper
@pytest.mark.parametrize("num_groups", [1, 2, 3, 8, 32, 64, 128, 255, 256])
@pytest.mark.parametrize("kind", ["ragged", "contiguous", "masked", "k_grouped"])
def test_numbers_of_groups(extension, kind, num_groups):
    check(_many_groups(kind, num_groups), "cuda")


@pytest.mark.parametrize("kind", ["ragged", "contiguous", "masked", "k_grouped"])
def test_three_groups(implementation, kind):
    check(_many_groups(kind, 3), implementation)


def _all_positive(family: str, k: int) -> Problem:
    p = dataclasses.replace(TYPICAL[family], positive=True, dtype="float32", k=k, m=256, n=128)
    if p.kind == "ragged":
        return dataclasses.replace(p, num_groups=2, group_data=(127, 129))
    if p.kind == "contiguous":
        return dataclasses.replace(p, num_groups=2, group_data=(1,) * 128 + (0,) * 128)
    if p.kind == "masked":
        return dataclasses.replace(p, num_groups=2, group_data=(256, 129))
    if p.kind == "k_grouped":
        return dataclasses.replace(p, num_groups=2, group_data=(k // 2, k // 2))
    return dataclasses.replace(p, m=16) if family == "split_k" else p


def _bias(problem: Problem, out: np.ndarray) -> float:
    """Largest relative error of the rows that are products; 7e-2 for K = 4096 unpromoted."""
    want = exact(problem)
    rows = want.any(axis=1)
    return float(np.abs(out[rows] / want[rows] - 1).max())


@pytest.mark.hopper
@every_family
def test_sums_of_one_sign_are_promoted(extension, family):
    problem = _all_positive(family, 4096)
    assert _bias(problem, check(problem, "cuda")) < 2e-3


@every_family
def test_sums_of_one_sign_in_the_simulated_numerics(simulated, family):
    """The model of the tensor cores cuts in the same direction: it is not exact, and bounded."""
    problem = dataclasses.replace(_all_positive(family, 512), m=32 if family == "dense" else 256)
    if family == "split_k":
        problem = dataclasses.replace(problem, m=16)
    with simulator(numerics="hopper"):
        operands = operands_of(problem, "sim")
        out = np.asarray(product(problem, operands, backend="sim"))
    assert 1e-6 < _bias(problem, out) < 2e-3


@every_family
def test_every_call_gives_the_same_bits(implementation, family):
    problem = TYPICAL[family]
    operands = operands_of(problem, implementation)
    call = jax.jit(lambda operands: product(problem, operands, backend=implementation))
    first = call(operands)
    for _ in range(REPETITIONS[implementation]):
        assert_same_bits(call(operands), first)


@every_family
def test_a_row_does_not_depend_on_the_others(implementation, family):
    """Nor a group of columns: NaN in all of them, and in their scales, changes no bit of it."""
    problem = TYPICAL[family]
    operands = operands_of(problem, implementation)
    call = jax.jit(lambda operands: product(problem, operands, backend=implementation))
    first = np.asarray(call(operands))
    kept = segments(problem)[-1]
    if problem.kind == "k_grouped":
        rows = slice(kept.d_row, kept.d_row + problem.m)
        columns = np.zeros(problem.k, bool)
        columns[kept.k] = True
        masks = [columns[None], columns[None, ::BLOCK]] * 2
    else:
        row = kept.lhs_rows.stop - 1
        rows = slice(row, row + 1)
        masks = [(np.arange(problem.lhs_rows) == row)[:, None]] * 2
    for i, mask in enumerate(masks):
        nan = jnp.asarray(jnp.nan, operands[i].dtype)
        operands[i] = jnp.where(mask, operands[i], nan)
    assert np.isfinite(first[rows].astype(np.float32)).all()
    assert_same_bits(call(operands)[rows], first[rows])


# Group sizes that only the device knows to be wrong; the results are those of the clamped sizes.
BAD_SIZES = ((-5, 2**31 - 1, -(2**31), 70), (2**31 - 1,) * 4, (-1,) * 4, (301, 301, 301, 301))


@pytest.mark.parametrize("sizes", BAD_SIZES, ids=str)
@pytest.mark.parametrize("kind", ["ragged", "masked", "k_grouped"])
def test_bad_sizes_write_nothing_outside(implementation, kind, sizes):
    check(dataclasses.replace(TYPICAL[kind], group_data=sizes), implementation)


def test_bad_ids_write_nothing_outside(implementation):
    ids = (2**31 - 1,) * 64 + (3,) * 64 + (-(2**31),) * 128 + (0,) * 127 + (-1,)
    check(dataclasses.replace(TYPICAL["contiguous"], group_data=ids), implementation)


def test_sizes_change_between_replays(implementation):
    """Six products in one program, which XLA captures: other sizes and buffers each time."""
    case = (3, 264, 128) if implementation == "cuda" else (3, 72, 128)
    num_groups, rows, width = case
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((num_groups, width, width), np.float32)
    weights = fp8.quantize(jnp.asarray(normal), (128, 128), implementation="xla")

    def layer(x, sizes, weights):
        x = fp8.quantize(x / 16, implementation="xla")
        return fp8.grouped_gemm(x, weights, sizes, implementation=implementation)

    def chain(x, sizes, weights):
        for _ in range(6):
            x = layer(x, sizes, weights)
        return x

    graph, single, kept = jax.jit(chain), jax.jit(layer), []
    for replay in range(12 if implementation == "cuda" else 2):
        x = jnp.asarray(rng.standard_normal((rows, width)), jnp.bfloat16)
        sizes = jnp.asarray([replay, rows // 2 - 3 * replay, replay % 2], jnp.int32)
        out, want = graph(x, sizes, weights), x
        kept.append((x, sizes, out))  # so that the next replay gets other memory
        for _ in range(6):
            want = single(want, sizes, weights)
        assert_same_bits(out, want)
        assert np.asarray(out, np.float32).any(axis=1).sum() == int(sizes.sum())
