# SPDX-License-Identifier: Apache-2.0
"""The CUDA handlers of the built extension, run on a libcuda that is written against cuda.h.

A program is lowered for a GPU; its custom calls are instantiated once, then initialized and
executed on three devices of different sizes from two threads each, at the same time. The stand-in
refuses what a driver would: a launch without a context, of another device's function or stream,
with more shared memory than was set for this device before, with attributes that it does not know
or a parameter that is not aligned. Every launch is compared with what the call asked for.
"""

import functools
import json
import os
import subprocess
import sys

import _sanitizers
import jax
import pytest
from _handlers_program import DEVICES, PROGRAMS, REPEATS, THREADS, M, N
from _nvrtc import find_all
from _special_problems import KEYS
from _witness_packages import TRUTH, compile_program, cuda_headers

from jax_fp8gemm._src.native import extension
from jax_fp8gemm._src.native.gemm_problem import Problem

SMS = (132, 114, 78)  # of the stand-in's devices
# Program, start and end of a configuration's key or None for what the heuristics choose, whether
# launches are dependent, and whose cuda.h.
CASES = {
    "clusters": ("gemm", ("1d2d.m128n128.w2", "c2x1.e4m3.e4m3.bf16"), "pdl", 13),
    "no clusters": ("gemm", ("1d2d.m128n128.w2", "c1x1.e4m3.e4m3.bf16"), "", 12),
    "split K": ("gemm", ("1d2d.m64n128.w1", "c1x1.e4m3.e4m3.bf16.split4"), "", 13),
    **{name: (name, None, "", 13) for name in PROGRAMS if name != "gemm"},
}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("extension")]


def key_of(case: str) -> str:
    """Returns the key of the configuration that a case asks for; "" for none."""
    if CASES[case][1] is None:
        return ""
    start, end = CASES[case][1]
    return next(key for key in KEYS if key.startswith(start) and key.endswith(end))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Returns a function from a version of CUDA to the stand-ins' paths: libcuda, XLA."""

    def make(name, source, headers):
        flags = ["-shared", "-fPIC", f"-Wl,-soname,{name}"]
        headers = [headers]
        return compile_program(tmp_path_factory, name, [source], headers=headers, flags=flags)

    @functools.cache
    def of_version(major):
        folder = tmp_path_factory.mktemp(f"cuda{major}")
        library = make(f"cuda_stand_in_{major}", "cuda_stand_in", cuda_headers(major))
        (folder / "libcuda.so.1").symlink_to(library)
        return folder, make("xla_stand_in", "xla_stand_in", jax.ffi.include_dir())

    return of_version


@pytest.fixture(scope="module")
def run_case(libraries, tmp_path_factory):
    """Returns a function that runs the program for a case."""
    if not find_all():
        pytest.skip("needs an NVRTC wheel")
    if _sanitizers.KIND:
        _sanitizers.build_extension("_core")
    cache = tmp_path_factory.mktemp("kernels")
    environment = os.environ | _sanitizers.environment()
    environment |= {"JAX_FP8GEMM_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}

    def process(case, action, **more):
        program, _, pdl, major = CASES[case]
        command = [sys.executable, TRUTH / "_handlers_program.py", libraries(major)[1]]
        return subprocess.run(
            [*map(str, command), program, key_of(case), pdl, action],
            env=environment | more,
            capture_output=True,
            text=True,
        )

    @functools.cache
    def compile_kernels(case):
        compiled = process(case, "compile")
        assert compiled.returncode == 0, compiled.stderr

    def run(case, action="run", fault=""):
        compile_kernels(case)  # into the cache: NVRTC wants more of libcuda than there is
        driver = libraries(CASES[case][-1])[0]
        return process(case, action, LD_LIBRARY_PATH=str(driver), STAND_IN_FAULT=fault)

    return run


def chosen(attributes: dict) -> str:
    """Returns the key of the configuration of a product."""
    if attributes["config"]:
        return attributes["config"]
    problem = {name: attributes[name] for name in Problem._fields}
    return extension.core().ranked_configs(problem, "cuda")[0][0]


def check_grid(grid: int, attributes: dict, config: dict, device: int) -> None:
    """Holds a grid to what fits and, where the host knows the tiles, to those that there are."""
    cluster = config["cluster_m"] * config["cluster_n"] * config["split_k"]
    fit = SMS[device] // cluster - (cluster > 1)  # as the stand-in says
    if attributes["kind"] in ("ragged", "masked"):
        assert grid % cluster == 0 and 0 < grid <= fit * cluster
        return
    rows = config["block_m"] * config["cluster_m"]
    columns = config["block_n"] * config["cluster_n"]
    tiles = -(-attributes["m"] // rows) * -(-attributes["n"] // columns)
    if attributes["kind"] == "k_grouped":
        tiles *= attributes["num_groups"]
    # With K split there is a cluster for each tile.
    assert grid == (tiles if config["split_k"] > 1 else min(tiles, fit)) * cluster


def check_product(launch, attributes, buffers):
    config = extension.core().describe_config(chosen(attributes))
    a, sfa, b, sfb, *rest = buffers
    group_data = 0 if attributes["kind"] == "dense" else rest.pop(0)
    c = rest.pop(0) if attributes["accumulate"] else 0
    (d,) = rest
    cluster = config["cluster_m"] * config["cluster_n"] * config["split_k"]
    assert launch["name"].startswith("sm90_fp8_gemm")
    check_grid(launch["grid"][0], attributes, config, launch["device"])
    assert launch["grid"][1:] == [1, 1]
    assert launch["block"] == [config["threads"], 1, 1]
    assert launch["cluster"] == [cluster, 1, 1]
    assert launch["smem_bytes"] == config["smem_bytes"]
    assert launch["pdl"] == attributes["pdl"]
    sfb_map, sfb_blocks = (sfb, 0) if attributes["scaling"] == "1d1d" else (0, sfb)
    row_bytes = attributes["n"] * (4 if attributes["d_dtype"] == "float32" else 2)
    pitch = -(-row_bytes // 16) * 16
    maps = [a, b, sfa, sfb_map, d, c]
    assert launch["words"] == [*maps, sfb_blocks, d, pitch, group_data]


def check_quantizer(launch, attributes, buffers):
    layout, batches = attributes["layout"], attributes["batches"]
    x, *rest = buffers
    up = rest.pop(0) if layout == "swiglu" else 0
    x_scales = rest.pop(0) if attributes["x_dtype"].startswith("float8") else 0
    sizes = rest.pop(0) if attributes["num_groups"] else 0
    factors = [rest.pop(0), rest.pop(0)] if layout == "rms_norm" else [0, 0]
    values, scales, *rows = rest
    assert launch["name"].startswith("sm90_quantize_")
    assert launch["block"] == [256, 1, 1] and launch["cluster"] == [1, 1, 1]
    assert launch["pdl"] == 0
    assert launch["words"] == [x, up, *factors, x_scales, sizes, values, scales, *(rows or [0, 0])]
    blocks = [-(-attributes[name] // 128) for name in ("rows", "columns")]
    if layout == "blocks":
        assert launch["grid"] == [batches * blocks[0] * blocks[1], 1, 1]
    elif layout in ("rows", "swiglu", "rms_norm"):  # 8 warps, of 8 rows and 128 columns each
        warps = batches * -(-attributes["rows"] // 8) * blocks[1]
        assert launch["grid"] == [-(-warps // 8), 1, 1]
    else:
        assert launch["grid"][0] > 0 and launch["grid"][1:] == [1, 1]


@pytest.mark.parametrize("case", CASES)
def test_every_launch_is_what_its_call_asked_for(run_case, case):
    result = run_case(case)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    calls, runs, launches = found["calls"], found["runs"], found["launches"]
    kernels = {json.dumps(each["attributes"], sort_keys=True) for each in calls}
    assert 2 <= found["loads"] <= len(kernels)  # once, however many devices and threads
    assert len(runs) == len(calls) * DEVICES * THREADS
    assert len(launches) == len(runs) * REPEATS
    for run in runs:
        target = calls[run["call"]]["target"]
        mine = [
            each
            for each in launches
            if each["stream"] == run["stream"] and run["buffers"][0] in each["words"]
        ]
        assert len(mine) == REPEATS
        check = check_product if "gemm.v1" in target else check_quantizer
        for launch in mine:
            assert launch["device"] == run["device"]
            check(launch, calls[run["call"]]["attributes"], run["buffers"])


def test_without_a_context_nothing_is_launched(run_case):
    result = run_case("clusters", "run_without_context")
    assert result.returncode == 1 and "CUDA_ERROR_INVALID_CONTEXT" in result.stderr


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("shared_memory", "cuOccupancyMaxActiveClusters failed with CUDA_ERROR_INVALID_VALUE"),
        ("device", "cuLaunchKernelEx failed with CUDA_ERROR_INVALID_HANDLE"),
    ],
)
def test_fault_is_found(run_case, fault, error):
    result = run_case("clusters", fault=fault)
    assert result.returncode == 1 and error in result.stderr


@pytest.mark.skipif(not _sanitizers.KIND, reason="needs a sanitizer: make asan, make tsan")
def test_sanitizer_sees_the_threads_and_memory_of_handlers(run_case):
    fault, finding = {
        "address": ("size", "stack-buffer-overflow"),
        "thread": ("lock", "data race"),
    }[_sanitizers.KIND]
    result = run_case("clusters", fault=fault)
    assert result.returncode != 0
    assert finding in result.stderr and "cuda_stand_in.cc" in result.stderr


def test_wrong_launches_are_found():
    key = key_of("clusters")
    config = extension.core().describe_config(key)
    attributes = {"kind": "dense", "scaling": "1d2d", "config": key, "pdl": True}
    attributes |= {"m": M, "n": N, "accumulate": False, "d_dtype": "bfloat16"}
    right = {
        "name": "sm90_fp8_gemm_1d2d",
        "device": 1,
        "grid": [112, 1, 1],
        "block": [config["threads"], 1, 1],
        "cluster": [2, 1, 1],
        "smem_bytes": config["smem_bytes"],
        "pdl": 1,
        "words": [1, 3, 2, 0, 5, 0, 4, 5, 2 * N, 0],
    }
    check_product(right, attributes, [1, 2, 3, 4, 5])
    for name, wrong in [
        ("grid", [132, 1, 1]),
        ("grid", [114, 1, 1]),
        ("block", [256, 1, 1]),
        ("cluster", [1, 1, 1]),
        ("smem_bytes", 0),
        ("pdl", 0),
        ("words", [1, 2, 3, 0, 5, 0, 4, 5, 2 * N, 0]),
        ("words", [1, 3, 2, 0, 5, 0, 4, 5, N, 0]),
    ]:
        with pytest.raises(AssertionError):
            check_product(right | {name: wrong}, attributes, [1, 2, 3, 4, 5])


def test_wrong_launches_of_quantizers_are_found():
    attributes = {"layout": "rms_norm", "batches": 1, "rows": M, "columns": 256}
    attributes |= {"num_groups": 0, "x_dtype": "bfloat16"}
    buffers = [1, 2, 3, 4, 5]  # x, factors of rows and columns, values, scales
    right = {
        "name": "sm90_quantize_rms_norm",
        "grid": [M // 8 * 2 // 8, 1, 1],
        "block": [256, 1, 1],
        "cluster": [1, 1, 1],
        "pdl": 0,
        "words": [1, 0, 2, 3, 0, 0, 4, 5, 0, 0],
    }
    check_quantizer(right, attributes, buffers)
    for name, wrong in [
        ("grid", [M // 8, 1, 1]),
        ("block", [128, 1, 1]),
        ("pdl", 1),
        ("words", [1, 0, 3, 2, 0, 0, 4, 5, 0, 0]),
        ("words", [1, 0, 2, 3, 0, 0, 5, 4, 0, 0]),
    ]:
        with pytest.raises(AssertionError):
            check_quantizer(right | {name: wrong}, attributes, buffers)
