# SPDX-License-Identifier: Apache-2.0
"""Every kernel, in the simulator, over instructions whose layouts are those of NVIDIA's CuTe.

Compared: the shared-memory descriptor of each wgmma with `make_gmma_desc`, what the kernel makes of
its registers with `CLayout_64xN`, stmatrix with its copy traits, and where the result lies for the
TMA store with the layout atoms of 128, 64 and 32 bytes. See cute_kernels.cc.
"""

import pytest
from _special_problems import KEYS
from _tiers import covering
from _witness_packages import compile_program, cute_headers, run

from jax_fp8gemm._src.native import extension

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("simulator_library")]

_SOURCES = (
    "cute_kernels",
    "kernel_launches",
    "gemm/config_key",
    "gemm/problem",
    "gemm/sm90_fp8_gemm",
    "driver/driver",
    "driver/fork_mutex",
    "driver/interrupts",
    "driver/tensor_map",
)
# Of each fault, a kernel that must meet it, and the comparison that must say so.
FAULTS = {
    "fragment_row": ("1d2d.m128n128.w2", "TMA store"),
    "fragment_column": ("1d1d.m64n64.w1", "TMA store"),
    "descriptor": ("1d2d_masked.m64n192.w1", "descriptor of A"),
    "k_step": ("1d2d.m256n128.w2", "descriptor of B"),
    "stmatrix": ("1d2d_contiguous.m128n128.w2", "TMA store"),
    "box": ("1d2d_ragged.m128n160.w2", "TMA store"),
    "swizzle": ("1d2d.m64n64.w1", "swizzle of 128 bytes"),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Returns the program, and the simulator's library for it."""
    library = extension.sim_library()
    # Its own functions hide the simulator's from the kernels, so they must be exported.
    flags = ["-rdynamic", library, f"-Wl,-rpath,{library.parent}"]
    headers = cute_headers()
    return compile_program(tmp_path_factory, "cute_kernels", _SOURCES, headers=headers, flags=flags)


def counts(program, keys=()) -> dict[str, int]:
    result = run(program, extension.sim_library(), "none", *keys)
    assert result.returncode == 0, result.stderr
    words = result.stdout.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def test_kernels_use_cutes_layouts(program):
    keys = covering(KEYS)
    found = counts(program, keys)
    assert found["kernels"] == len(keys)
    assert found["stored"] > 0 and found["copied"] > 0
    assert found["swizzled"] == 3 * 232448 // 16


def test_every_kernel_uses_cutes_layouts(program):
    found = counts(program)
    assert found["kernels"] == len(KEYS)
    assert found["descriptors"] > 50e6 and found["stored"] > 50e6 and found["copied"] > 1e6


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(program, fault):
    start, comparison = FAULTS[fault]
    key = next(key for key in KEYS if key.startswith(start))
    result = run(program, extension.sim_library(), fault, key)
    assert result.returncode == 1 and comparison in result.stderr, result.stderr
