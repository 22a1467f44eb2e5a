# SPDX-License-Identifier: Apache-2.0
"""Every kernel configuration in the simulator: results against float64, no hazard, no deadlock.

Every configuration runs on a problem made for its tile: rows, columns and K that end in the middle
of a tile, an odd number of tiles along a cluster, more blocks of K than stages, and more than two
tiles per CTA (the simulated device has four SMs). The configurations take turns at the timings and
schedulers. With FP8GEMM_LONG_SWEEP=1 each one runs under all of them.
"""

import dataclasses
import importlib.util
import itertools
import os
import sys
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("jax_fp8gemm._core") is None:
    pytest.skip("needs the compiled extension jax_fp8gemm._core", allow_module_level=True)

from _problems import BLOCK, Problem, ceil_div, mismatch, poisoned_memory, problem_for, run
from _special_problems import KEYS, PAIR, RAGGED, RAGGED_PAIR, SMALL, SPECIAL, SPLIT, kernel
from _tiers import covering, rotating, slow_unless

from jax_fp8gemm._src.native import extension, sim_library
from jax_fp8gemm.testing import relative_error, simulator

pytestmark = pytest.mark.usefixtures("simulator_library", "poison")

LONG_SWEEP = os.environ.get("FP8GEMM_LONG_SWEEP", "") not in ("", "0")


# Classes of operations that timing "late" can starve: none, loads, wgmma, stores, and the wgmma of
# each of up to four warpgroups. The seed picks one.
NUM_STARVED_CLASSES = 8
SCHEDULERS = ("lifo", "random", "starve_warp")
MODES = (
    *({"timing": "early", "scheduler": s, "seed": 1} for s in SCHEDULERS),
    *(
        {"timing": "late", "scheduler": s, "seed": seed}
        for seed, s in zip(range(NUM_STARVED_CLASSES), itertools.cycle(SCHEDULERS))
    ),
    *({"timing": "random", "scheduler": s, "seed": seed} for seed in (3, 4) for s in SCHEDULERS),
)
# Kernels that run in every mode: of each family one without a cluster and those with one.
MODE_KEYS = (
    kernel("1d2d.m16n32.w1.c1x1.e4m3.e4m3.bf16"),
    kernel("1d2d.m128n160.w2.c2x1.e4m3.e4m3.bf16"),
    kernel("1d2d.m256n128.w2.c1x2.e4m3.e4m3.bf16.acc"),
    kernel("1d2d.m16n64.w1.c1x1.e4m3.e4m3.bf16.split4"),
    kernel("1d2d.m128n64.w2.c1x1.e4m3.e4m3.bf16.split2"),
    kernel("1d2d_ragged.m64n64.w1.c1x1.e4m3.e4m3.bf16"),
    kernel("1d2d_ragged.m128n128.w2.c2x1.e4m3.e4m3.bf16"),
    kernel("1d2d_contiguous.m128n128.w2.c1x2.e4m3.e4m3.bf16"),
    kernel("1d2d_masked.m16n64.w1.c1x1.e4m3.e4m3.bf16"),
    kernel("1d2d_masked.m128n128.w2.c2x1.e4m3.e4m3.bf16"),
    kernel("1d1d.m192n112.w3.c1x2.e4m3.e4m3.f32"),
    kernel("1d1d_kgrouped.m128n128.w2.c2x1.e4m3.e4m3.f32.acc"),
)


COVERING = covering(KEYS)
EVERY_MODE = rotating(MODE_KEYS, MODES, 7)


def _name(value: str | dict) -> str:
    return value if isinstance(value, str) else "-".join(map(str, value.values()))


@pytest.fixture(scope="module")
def poison():
    """Memory that a kernel should have written cannot hold a right result by chance."""
    with poisoned_memory():
        yield


def check(problem: Problem, key: str = "", *, num_sms: int | None = None, **mode) -> np.ndarray:
    """Runs a problem and fails on a hazard or a wrong element; returns the result."""
    with simulator(**mode):
        out = run(problem, config=key, num_sms=num_sms)
    hopper = mode.get("numerics") == "hopper"
    wrong = mismatch(problem, out, implementation="cuda" if hopper else "sim")
    assert not wrong, f"{problem} under {mode}: {wrong}"
    return out


def _modes(key: str) -> list[dict]:
    """The modes that configuration `key` runs in."""
    return list(MODES) if LONG_SWEEP else [MODES[KEYS.index(key) % len(MODES)]]


@pytest.mark.parametrize("key", [slow_unless(key in COVERING, key) for key in KEYS])
def test_configuration(key):
    for mode in _modes(key):
        check(problem_for(key), key, **mode)


@pytest.mark.parametrize(("key", "mode"), EVERY_MODE, ids=_name)
def test_every_mode(key, mode):
    check(dataclasses.replace(problem_for(key), seed=1), key, **mode)


def test_problems_are_as_hard_as_promised():
    """More blocks of K than stages, tails everywhere, more than two tiles per CTA."""
    for key in KEYS:
        c, p = extension.core().describe_config(key), problem_for(key)
        rows, columns = c["block_m"] * c["cluster_m"], c["block_n"] * c["cluster_n"]
        k_blocks = ceil_div(p.k, BLOCK)
        assert p.n % c["block_n"] != 0, key
        assert k_blocks > c["num_stages"] * c["split_k"], key
        if c["split_k"] > 1:  # its clusters compute one tile each
            continue
        assert ceil_div(p.n, c["block_n"]) % 2 == 1, key
        if p.kind != "k_grouped":
            assert p.k % BLOCK != 0, key
        if p.kind in ("dense", "k_grouped"):
            assert p.m % c["block_m"] != 0, key
            assert ceil_div(p.m, c["block_m"]) % 2 == 1, key
        tiles = ceil_div(p.m, rows) * ceil_div(p.n, columns)
        tiles *= p.num_groups if p.kind in ("masked", "k_grouped") else 1
        assert tiles > 2 * (4 // (c["cluster_m"] * c["cluster_n"])), key


@pytest.mark.parametrize("name", [slow_unless(i % 3 == 0, name) for i, name in enumerate(SPECIAL)])
def test_special_problem(name):
    problem, key = SPECIAL[name]
    for mode in MODES[::5]:
        check(problem, key, **mode)


def test_dependent_launch(monkeypatch):
    monkeypatch.setenv("JAX_FP8GEMM_PDL", "1")
    for key in (SMALL, PAIR):
        check(problem_for(key), key + ".pdl", timing="random", seed=5)


@pytest.mark.parametrize("num_sms", [1, 2, 3])
def test_fewer_sms(num_sms):
    for key in (SMALL,) if num_sms == 1 else (SMALL, PAIR, RAGGED_PAIR):
        check(problem_for(key), key, num_sms=num_sms)


def test_a_cluster_needs_its_sms():
    with pytest.raises(Exception, match="needs 2 SMs for dense .* on 1 SMs"):
        check(problem_for(PAIR), PAIR, num_sms=1)


def test_result_does_not_depend_on_the_schedule():
    """Bit for bit: every mode adds in the same order."""
    for key in MODE_KEYS[::3]:
        results = {check(problem_for(key), key, **mode).tobytes() for mode in MODES[::4]}
        assert len(results) == 1, key


@pytest.mark.parametrize("key", [SMALL, kernel("1d2d.m32n32.w1.c1x1.e4m3.e4m3.bf16"), SPLIT])
def test_small_tiles_load_no_absent_rows(key):
    """Of a, b and the scales of a, as many rows as the tile has, and not the 64 of wgmma."""
    tile = extension.core().describe_config(key)
    k_blocks = 16
    problem = Problem("dense", tile["block_m"], tile["block_n"], k_blocks * BLOCK)
    before = sim_library.stats()["bytes_loaded"]
    check(problem, key)
    rows = tile["block_m"] + tile["block_n"]
    want = k_blocks * (rows * BLOCK + tile["block_m"] * 4)
    assert sim_library.stats()["bytes_loaded"] - before == want


MANY_ROWS = (
    kernel("1d2d_ragged.m128n128.w2.c1x1.e4m3.e4m3.bf16"),
    kernel("1d2d_masked.m128n128.w2.c1x1.e4m3.e4m3.bf16"),
    kernel("1d1d_kgrouped.m128n128.w2.c1x1.e4m3.e4m3.f32"),
)


@pytest.mark.parametrize("key", MANY_ROWS)
def test_a_consumer_of_padding_does_not_multiply(key):
    """One tile of two consumers of 64 rows: the second has work from row 65 on."""
    kind = extension.core().describe_config(key)["kind"]
    counts = {}
    for rows in (64, 65):
        problem = Problem(kind, 128, 128, 3 * BLOCK, (rows,), 1)
        if kind == "k_grouped":
            problem = Problem(
                kind, rows, 128, 3 * BLOCK, (3 * BLOCK,), 1, rhs_is_1x128=True, dtype="float32"
            )
        before = sim_library.stats()["wgmma"]
        check(problem, key)
        counts[rows] = sim_library.stats()["wgmma"] - before
    assert counts == {64: 3 * 4, 65: 2 * 3 * 4}


@pytest.mark.parametrize(
    "key", [RAGGED, kernel("1d2d_masked.m64n64.w1.c1x1.e4m3.e4m3.bf16"), *MANY_ROWS[:2]]
)
def test_groups_begin_at_any_row(key):
    """The simulator traps, as a GPU does, where a box of scales begins between 16 bytes."""
    kind = extension.core().describe_config(key)["kind"]
    for before in range(1, 5):
        sizes, rows = (
            ((before, 70, 1, 66), 150) if kind == "ragged" else ((3, 70, 0, 9), 70 + before)
        )
        check(Problem(kind, rows, 136, 2 * BLOCK, sizes, 4), key)


def test_rows_do_not_depend_on_their_neighbours():
    """A group's rows are the same bits alone and among others."""
    together = Problem("ragged", 200, 136, 300, (70, 130), 2)
    alone = dataclasses.replace(together, group_data=(70, 0))
    assert np.array_equal(check(together, RAGGED)[:70], check(alone, RAGGED)[:70])


# ---- As the tensor cores add ---------------------------------------------------------------------

# One of each family and of each pair of element types.
HOPPER_KEYS = (
    *(key for key in MODE_KEYS if ".m16" in key or ".m64" in key),
    kernel("1d2d.m64n128.w1.c1x1.e5m2.e4m3.bf16"),
    kernel("1d2d.m64n128.w1.c1x1.e4m3.e5m2.f16"),
    kernel("1d2d.m64n128.w1.c1x1.e5m2.e5m2.f32"),
    kernel("1d2d.m16n128.w1.c1x1.e4m3.e4m3.f32.acc"),
    kernel("1d2d_contiguous.m64n128.w1.c1x1.e4m3.e4m3.bf16"),
    kernel("1d2d_masked.m32n128.w1.c1x1.e4m3.e4m3.bf16"),
    kernel("1d1d.m64n64.w1.c1x1.e4m3.e4m3.f32"),
    kernel("1d1d.m64n64.w1.c1x1.e5m2.e5m2.bf16"),
    kernel("1d1d_kgrouped.m64n64.w1.c1x1.e4m3.e4m3.f32.acc"),
)


@pytest.mark.parametrize("key", HOPPER_KEYS)
def test_with_hopper_numerics(key):
    check(problem_for(key), key, numerics="hopper")


def _one_chain(lhs: np.ndarray, rhs: np.ndarray) -> float:
    """The sum of products as the tensor cores would have it without promotion."""
    sys.path.insert(0, str(Path(__file__).parent / "conformance"))
    from conformance_models import mma_k32

    total = np.zeros((lhs.shape[0], rhs.shape[0]), np.float32)
    for k in range(0, lhs.shape[1], 32):
        total = mma_k32(lhs[:, k : k + 32], rhs[:, k : k + 32], total)
    return total


def test_promotion_keeps_what_the_tensor_core_would_lose():
    """Positive products: the sum loses 2e-3 at most with promotion, over 2e-2 without."""
    problem = Problem("dense", 64, 32, 4096, dtype="float32", positive=True)
    out = check(problem, kernel("1d2d.m64n32.w1.c1x1.e4m3.e4m3.f32"), numerics="hopper")
    lhs, _, rhs, _ = problem.numbers()
    ref = lhs.astype(np.float64) @ rhs.astype(np.float64).T
    assert np.abs(out / ref - 1).max() < 2e-3
    chain = _one_chain(lhs[:8], rhs[:8])
    assert np.abs(chain / ref[:8, :8] - 1).mean() > 2e-2
    assert relative_error(out, ref) < 1e-2 * relative_error(chain, ref[:8, :8])
