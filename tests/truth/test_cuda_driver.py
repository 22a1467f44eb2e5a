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

import jax
import pytest
from _handlers_program import DEVICES, REPEATS, THREADS, K, M, N
from _nvrtc import find_all
from _special_problems import KEYS
from _witness_packages import TRUTH, compile_program, cuda_headers

from jax_fp8gemm._src.native import extension

SMS = (132, 114, 78)  # of the stand-in's devices
# Start of a configuration's key, whether launches are dependent, and whose cuda.h.
CASES = {
    "clusters": ("1d2d.m128n128.w2", "c2x1.e4m3.e4m3.bf16", "pdl", 13),
    "no clusters": ("1d2d.m128n128.w2", "c1x1.e4m3.e4m3.bf16", "", 12),
    "split K": ("1d2d.m64n128.w1", "c1x1.e4m3.e4m3.bf16.split4", "", 13),
}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("extension")]


def key_of(case: str) -> str:
    start, end, *_ = CASES[case]
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
    cache = tmp_path_factory.mktemp("kernels")
    environment = os.environ | {"JAX_FP8GEMM_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}

    def process(case, action, **more):
        *_, pdl, major = CASES[case]
        command = [sys.executable, TRUTH / "_handlers_program.py", libraries(major)[1]]
        return subprocess.run(
            [*map(str, command), key_of(case), pdl, action],
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
        driver = libraries(CASES[case][3])[0]
        return process(case, action, LD_LIBRARY_PATH=str(driver), STAND_IN_FAULT=fault)

    return run


@functools.cache
def _expected_grid(key: str, device: int) -> int:
    """Returns the grid of a product: for clusters what the stand-in says that fits."""
    config = extension.core().describe_config(key)
    cluster = config["cluster_m"] * config["cluster_n"] * config["split_k"]
    rows = config["block_m"] * config["cluster_m"]
    columns = config["block_n"] * config["cluster_n"]
    tiles = -(-M // rows) * -(-N // columns)
    if config["split_k"] > 1:  # a cluster for each tile
        return tiles * cluster
    return min(tiles, SMS[device] // cluster - (cluster > 1)) * cluster


def check_product(launch, key, pdl, buffers):
    config = extension.core().describe_config(key)
    a, sfa, b, _, d = buffers
    cluster = config["cluster_m"] * config["cluster_n"] * config["split_k"]
    assert launch["name"].startswith("sm90_fp8_gemm")
    assert launch["grid"] == [_expected_grid(key, launch["device"]), 1, 1]
    assert launch["block"] == [config["threads"], 1, 1]
    assert launch["cluster"] == [cluster, 1, 1]
    assert launch["smem_bytes"] == config["smem_bytes"]
    assert launch["pdl"] == (pdl == "pdl")
    assert launch["pointers"] == [a, b, sfa, 0, d, 0, 0, 0]  # tensor maps; sfb and c have none


def check_quantizer(launch, buffers):
    x, values, scales = buffers
    assert launch["name"].startswith("sm90_quantize_")
    # A CTA has 128 columns of 64 rows, or of 128.
    assert launch["grid"] in ([-(-M // 64) * -(-K // 128), 1, 1], [N // 128 * -(-K // 128), 1, 1])
    assert launch["block"] == [256, 1, 1] and launch["cluster"] == [1, 1, 1]
    assert launch["pdl"] == 0
    assert launch["pointers"] == [x, 0, 0, 0, 0, 0, values, scales]


@pytest.mark.parametrize("case", CASES)
def test_every_launch_is_what_its_call_asked_for(run_case, case):
    result = run_case(case)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    calls, runs, launches = found["calls"], found["runs"], found["launches"]
    assert len(calls) == 3 and found["loads"] == 3  # once, however many devices and threads
    assert len(runs) == len(calls) * DEVICES * THREADS
    assert len(launches) == len(runs) * REPEATS
    for run in runs:
        target = calls[run["call"]]["target"]
        mine = [
            each
            for each in launches
            if each["stream"] == run["stream"] and set(run["buffers"]) & set(each["pointers"])
        ]
        assert len(mine) == REPEATS
        for launch in mine:
            assert launch["device"] == run["device"]
            if "gemm.v1" in target:
                check_product(launch, key_of(case), CASES[case][2], run["buffers"])
            else:
                check_quantizer(launch, run["buffers"])


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


def test_wrong_launches_are_found():
    key = key_of("clusters")
    config = extension.core().describe_config(key)
    right = {
        "name": "sm90_fp8_gemm_1d2d",
        "device": 1,
        "grid": [112, 1, 1],
        "block": [config["threads"], 1, 1],
        "cluster": [2, 1, 1],
        "smem_bytes": config["smem_bytes"],
        "pdl": 1,
        "pointers": [1, 3, 2, 0, 5, 0, 0, 0],
    }
    check_product(right, key, "pdl", [1, 2, 3, 4, 5])
    for name, wrong in [
        ("grid", [132, 1, 1]),
        ("grid", [114, 1, 1]),
        ("block", [256, 1, 1]),
        ("cluster", [1, 1, 1]),
        ("smem_bytes", 0),
        ("pdl", 0),
        ("pointers", [1, 2, 3, 0, 5, 0, 0, 0]),
    ]:
        with pytest.raises(AssertionError):
            check_product(right | {name: wrong}, key, "pdl", [1, 2, 3, 4, 5])
