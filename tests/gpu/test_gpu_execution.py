# SPDX-License-Identifier: Apache-2.0
"""How kernels run inside JAX on a GPU: again and again, in graphs, threads, streams and devices."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _dense import assert_close, assert_same_bits, device_for, gemm_with, operands_for
from cases import GemmCase

import jax_fp8gemm as fp8

HERE = Path(__file__).parent
REPETITIONS = 100
# One tile, several waves with clusters, a long K, tails everywhere.
REPEATED_CASES = (
    GemmCase("repeat", 16, 128, 512),
    GemmCase("repeat", 512, 7168, 2048),
    GemmCase("repeat", 128, 2112, 7168),
    GemmCase("repeat", 1000, 1000, 1000),
    GemmCase("repeat", 4096, 4096, 1024),
)
SMALL = GemmCase("small", 200, 264, 400)


def _bits(x):
    """Returns the bit patterns of a 16-bit float array."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


@pytest.mark.hopper
@pytest.mark.parametrize("case", REPEATED_CASES, ids=str)
def test_every_call_gives_the_same_bits(case):
    lhs, rhs = operands_for(case, "cuda")
    call = jax.jit(gemm_with("cuda"))
    first = call(lhs, rhs)
    same = jax.jit(lambda x, y: (_bits(x) == _bits(y)).all())
    outcomes = [same(first, call(lhs, rhs)) for _ in range(REPETITIONS)]
    assert all(map(bool, outcomes))


def test_a_row_does_not_depend_on_the_others(implementation):
    """With one configuration; the heuristics may choose another one for another M."""
    lhs, rhs = operands_for(SMALL, implementation)
    changed = fp8.BlockScaled(lhs.values.at[1:].set(0), lhs.scales, lhs.block)
    call = jax.jit(gemm_with(implementation))
    assert_same_bits(call(lhs, rhs)[0], call(changed, rhs)[0])


def test_donated_accumulator_is_the_result(implementation):
    lhs, rhs = operands_for(SMALL, implementation)
    start = np.asarray(cases.normal((SMALL.m, SMALL.n), 5))
    with jax.default_device(device_for(implementation)):
        accumulator = jnp.array(start, copy=True).block_until_ready()
    address = accumulator.unsafe_buffer_pointer()
    call = jax.jit(
        lambda c, x, y: gemm_with(implementation, preferred_element_type=jnp.float32)(
            x, y, accumulator=c
        ),
        donate_argnums=0,
    )
    out = call(accumulator, lhs, rhs)
    assert accumulator.is_deleted() and out.unsafe_buffer_pointer() == address
    assert_close(out, lhs, rhs, start, implementation=implementation)


def test_kept_accumulator_is_unchanged(implementation):
    lhs, rhs = operands_for(SMALL, implementation)
    start = cases.normal((SMALL.m, SMALL.n), 5)
    accumulator = jax.device_put(start, device_for(implementation))
    call = jax.jit(gemm_with(implementation, preferred_element_type=jnp.float32))
    out = call(lhs, rhs, accumulator=accumulator)
    assert_close(out, lhs, rhs, start, implementation=implementation)
    assert_same_bits(accumulator, start)


@pytest.mark.hopper
@pytest.mark.parametrize("num_sms", [1, 2, 7, 131, 132, 1024])
def test_num_sms(num_sms):
    case = GemmCase("num_sms", 1000, 2112, 512)
    lhs, rhs = operands_for(case, "cuda")
    out = gemm_with("cuda", num_sms=num_sms)(lhs, rhs)
    assert_close(out, lhs, rhs, implementation="cuda")


@pytest.mark.hopper
def test_dependent_launches_change_nothing(monkeypatch):
    """Chains in which each kernel reads what the one before it wrote, with and without overlap."""
    weights = [
        jax.device_put(
            fp8.quantize(cases.normal((1024, 1024), i), (128, 128)), jax.devices("cuda")[0]
        )
        for i in range(12)
    ]
    start = jax.device_put(cases.normal((48, 1024), 99, jnp.bfloat16), jax.devices("cuda")[0])

    def chain(x):
        for weight in weights:
            x = fp8.gemm(fp8.quantize(x / 32), weight, implementation="cuda")
        return x

    results = {}
    for setting in ("0", "1"):
        monkeypatch.setenv("JAX_FP8GEMM_PDL", setting)
        program = jax.jit(lambda x: chain(x))
        results[setting] = [np.asarray(program(start)) for _ in range(30)]
    for out in results["0"] + results["1"]:
        assert np.isfinite(out.astype(np.float32)).all()
        assert_same_bits(out, results["0"][0])


def _run_graph_program(tmp_path, implementation: str) -> dict:
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment["XLA_FLAGS"] = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), str(HERE.parent), *filter(None, sys.path)]
    )
    if implementation == "sim":
        environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, str(HERE / "graph_program.py"), implementation]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_graphs_replayed_with_new_buffers(implementation, tmp_path):
    """A program of six products, which XLA captures, against the products one by one."""
    report = _run_graph_program(tmp_path, implementation)
    assert report["replays"] >= 10 and report["mismatches"] == []
    assert report["distinct_addresses"] > 1, "every replay used the same memory"


@pytest.mark.hopper
def test_products_are_captured_in_a_graph(tmp_path):
    _run_graph_program(tmp_path, "cuda")
    passed = list(tmp_path.glob("*jit_chain.thunk_sequence_after_thunk_passes.txt"))
    (path,) = passed or tmp_path.glob("*jit_chain.thunk_sequence.txt")
    lines = path.read_text().splitlines()
    assert any("kCommandBuffer" in line for line in lines), lines
    calls = [line for line in lines if "kCustomCall" in line]
    assert calls and all(line.startswith(" ") for line in calls), lines


def test_threads(implementation):
    """Eight threads, four shapes: compiled and launched at the same time."""
    shapes = [GemmCase("thread", 40 + 24 * i, 136, 272) for i in range(4)]

    def work(i: int):
        case = shapes[i % len(shapes)]
        lhs, rhs = operands_for(case, implementation, seed=i)
        return lhs, rhs, jax.jit(gemm_with(implementation))(lhs, rhs)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(16)))
    for lhs, rhs, out in results:
        assert_close(out, lhs, rhs, implementation=implementation)


@pytest.mark.hopper
def test_streams():
    """Independent products that XLA may run on streams of their own."""
    compute_on = pytest.importorskip("jax.experimental.compute_on").compute_on
    pairs = [operands_for(GemmCase("stream", 512, 1024, 1024), "cuda", seed=i) for i in range(3)]
    call = gemm_with("cuda")

    def program(pairs):
        results = []
        for i, (lhs, rhs) in enumerate(pairs):
            with compute_on(f"gpu_stream:{i + 1}"):
                results.append(jax.jit(call)(lhs, rhs))
        return results

    compiled = jax.jit(program)
    for _ in range(10):
        for (lhs, rhs), out in zip(pairs, compiled(pairs), strict=True):
            assert_same_bits(out, call(lhs, rhs))


@pytest.mark.hopper
def test_devices():
    """Every device of the process, at the same time; the kernel is loaded on each."""
    devices = jax.devices("cuda")
    if len(devices) < 2:
        pytest.skip(f"needs two GPUs, found {len(devices)}")
    lhs, rhs = operands_for(SMALL, "cuda")
    call = jax.jit(gemm_with("cuda"))
    placed = [jax.device_put((lhs, rhs), device) for device in devices]
    results = [call(*operands) for operands in placed * 3]
    for out, device in zip(results, devices * 3, strict=True):
        assert out.devices() == {device}
        assert_same_bits(out, results[0])


@pytest.mark.hopper
def test_a_scan_reuses_one_kernel():
    """The same call site thirty times in one program; builds are counted."""
    from jax_fp8gemm._src.native import extension

    lhs, rhs = operands_for(SMALL, "cuda")

    @jax.jit
    def program(lhs, rhs):
        def step(total, _):
            return total + fp8.gemm(lhs, rhs, implementation="cuda").astype(jnp.float32), None

        return jax.lax.scan(step, jnp.zeros((SMALL.m, SMALL.n)), length=30)[0]

    before = extension.core().cache_counters()["builds"]
    out = program(lhs, rhs)
    assert extension.core().cache_counters()["builds"] <= before + 1
    one = np.asarray(gemm_with("cuda")(lhs, rhs), np.float32)
    np.testing.assert_allclose(np.asarray(out), 30 * one, rtol=1e-5)
