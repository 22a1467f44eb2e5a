# SPDX-License-Identifier: Apache-2.0
"""Tensor maps of every kernel against CuTe's `make_tma_atom` for the same tiles.

Both call cuTensorMapEncodeTiled, whose arguments are compared: element type, extents, pitch, box,
element strides, interleave, swizzle, fill. The promotion to L2 is a hint and is not. Three problems
for each kernel: awkward extents, extents below a tile, and more than 2^31 elements.

CuTe has tiles as types, of which the program needs about seventy: it takes a minute to compile.
"""

import pytest
from _special_problems import KEYS
from _witness_packages import compile_program, cute_headers, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("extension")]

_SOURCES = (
    "cute_tensor_maps",
    "gemm/config_key",
    "gemm/problem",
    "gemm/sm90_fp8_gemm",
    "driver/driver",
    "driver/fork_mutex",
    "driver/interrupts",
    "driver/tensor_map",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Returns the program."""
    return compile_program(
        tmp_path_factory, "cute_tensor_maps", _SOURCES, headers=cute_headers(), flags=["-O0"]
    )


def test_every_map_is_as_cute_makes_it(program):
    result = run(program, "none")
    assert result.returncode == 0, result.stderr
    kernels, maps = map(int, result.stdout.split()[1::2])
    assert kernels == len(KEYS)
    assert maps >= 3 * 4 * kernels


@pytest.mark.parametrize("fault", ["type", "rows", "pitch", "box", "swizzle"])
def test_fault_is_found(program, fault):
    result = run(program, fault)
    assert result.returncode == 1 and "map of a\n  ours" in result.stderr, result.stderr
