# SPDX-License-Identifier: Apache-2.0
"""Our declarations of the CUDA driver against NVIDIA's cuda.h, of CUDA 12 and 13.

`tests/cpp/driver_abi_test.cc` includes both and compares values of enums, layouts of structures and
parameters of functions when it is compiled. Here it is held to be complete, and the names that are
looked up in libcuda to be those that cuda.h gives the functions, whose older versions keep theirs.
"""

import re
import subprocess

import pytest
from _source import ROOT, cpp_code
from _witness_packages import CUDA_HEADERS, compiler, cuda_headers

_CSRC = ROOT / "csrc"
_TYPES = _CSRC / "driver" / "driver_types.h"
_ABI_TEST = ROOT / "tests" / "cpp" / "driver_abi_test.cc"

versions = pytest.mark.parametrize("major", CUDA_HEADERS)


def compile_abi_test(major: int, *first_includes) -> subprocess.CompletedProcess:
    """Compiles the comparison, with folders that come before csrc."""
    includes = [f"-I{folder}" for folder in (*first_includes, _CSRC)]
    command = [compiler(), "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *includes]
    command += ["-isystem", cuda_headers(major), _ABI_TEST]
    return subprocess.run(command, capture_output=True, text=True)


@versions
def test_declarations_are_those_of_cuda_h(major):
    result = compile_abi_test(major)
    assert result.returncode == 0, result.stderr


def test_every_declaration_is_compared():
    types, compared = cpp_code(_TYPES.read_text()), _ABI_TEST.read_text()
    values = re.findall(r"^\s*(CU\w+) = \d+,", types, re.MULTILINE)
    structures = re.findall(
        r"^(?:struct|union)(?: alignas\(\d+\))? (CU\w+) \{", types, re.MULTILINE
    )
    header = cpp_code((_CSRC / "driver" / "driver.h").read_text())
    functions = re.findall(r"CUresult \(\*(cu\w+)\)", header)
    assert len(values) >= 35 and len(structures) >= 4 and len(functions) >= 14
    assert [each for each in values if f"SAME_VALUE({each});" not in compared] == []
    layouts = re.findall(r"SAME_TYPE_LAYOUT\((\w+)\)|sizeof\(ours::(\w+)\)", compared)
    assert set(structures) <= {name for pair in layouts for name in pair}
    assert [each for each in functions if f"SAME_FUNCTION({each});" not in compared] == []


@pytest.mark.parametrize(
    ("declared", "changed"),
    [
        ("CUDA_ERROR_NOT_FOUND = 500", "CUDA_ERROR_NOT_FOUND = 501"),
        ("SWIZZLE_64B = 2,\n  CU_TENSOR_MAP_SWIZZLE_128B = 3", "SWIZZLE_64B = 3,\n  "
         "CU_TENSOR_MAP_SWIZZLE_128B = 2"),
        ("STREAM_SERIALIZATION = 6", "STREAM_SERIALIZATION = 7"),
        ("char pad[64];", "char pad[56];"),
        ("unsigned sharedMemBytes;\n  CUstream hStream;", "CUstream hStream;\n  "
         "unsigned sharedMemBytes;"),
    ],
)  # fmt: skip
def test_changed_declaration_is_found(tmp_path, declared, changed):
    text = _TYPES.read_text()
    assert declared in text
    copy = tmp_path / "driver" / "driver_types.h"
    copy.parent.mkdir()
    copy.write_text(text.replace(declared, changed))
    result = compile_abi_test(13, tmp_path)
    assert result.returncode == 1 and "static assertion failed" in result.stderr


def test_changed_function_is_found(tmp_path):
    header = _CSRC / "driver" / "driver.h"
    copy = tmp_path / "driver" / "driver.h"
    copy.parent.mkdir()
    changed = header.read_text().replace(
        "CUdevice_attribute attribute, CUdevice device);", "CUdevice device);"
    )
    assert changed != header.read_text()
    copy.write_text(changed)
    result = compile_abi_test(13, tmp_path)
    assert result.returncode == 1 and "cuDeviceGetAttribute" in result.stderr


def declared_functions(major: int) -> set[str]:
    """Returns the names of cuda.h's functions as a linker sees them."""
    command = [compiler(), "-E", "-P", "-x", "c", cuda_headers(major) / "cuda.h"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\bCUresult\s+(cu\w+)\s*\(", text))


def looked_up() -> set[str]:
    """Returns the names that are asked of libcuda."""
    return set(re.findall(r'Resolve\(library, "(cu\w+)"', (_CSRC / "driver/driver.cc").read_text()))


@versions
def test_symbols_are_those_of_cuda_h(major):
    declared = declared_functions(major)
    assert len(looked_up()) >= 14
    assert looked_up() <= declared
    # Of a function with versions cuda.h gives the plain name to none.
    assert "cuMemAlloc_v2" in declared and "cuMemAlloc" not in declared
