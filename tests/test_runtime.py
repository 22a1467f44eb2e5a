# SPDX-License-Identifier: Apache-2.0
"""Builds csrc/driver and most of csrc/jit with g++, and runs their C++ tests; needs no CUDA."""

import ctypes
import importlib.util
import os
import re
import shutil
import tomllib
from pathlib import Path

import _runtime_programs
import pytest
from _runtime_programs import CACHE_PROGRAMS, CSRC, FLAGS, PROGRAMS, ROOT, compiler, run

# C++ programs, which g++ compiles first.
pytestmark = pytest.mark.slow

_NVRTC_WHEELS = {13: "cu13/lib/libnvrtc.so.13", 12: "cuda_nvrtc/lib/libnvrtc.so.12"}

_DRIVER_FUNCTIONS = (
    "cuInit cuDriverGetVersion cuGetErrorString cuCtxGetDevice cuDeviceGetAttribute"
    " cuDeviceGetName cuLibraryLoadData cuLibraryUnload cuLibraryGetKernel cuKernelGetFunction"
    " cuFuncGetAttribute cuOccupancyMaxActiveClusters"
    " cuKernelSetAttribute cuLaunchKernelEx cuTensorMapEncodeTiled"
).split()

_SIM_SOURCE = """
#include "driver/driver.h"
extern "C" const fp8gemm::DriverApi* Fp8GemmSimDriver() {
  static const fp8gemm::DriverApi api = [] {
    fp8gemm::DriverApi api{};
    api.cuInit = [](unsigned) { return fp8gemm::CUDA_SUCCESS; };
    api.cuDriverGetVersion = [](int* version) { return *version = 13000, fp8gemm::CUDA_SUCCESS; };
    return api;
  }();
  return &api;
}
"""


def _nvrtc(major: int) -> Path:
    """Library of the NVRTC wheel of one CUDA major version, or a skip."""
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations if spec is not None else []:
        path = Path(root) / _NVRTC_WHEELS[major]
        if path.exists():
            return path
    pytest.skip(f"needs the NVRTC wheel of CUDA {major} ({_NVRTC_WHEELS[major]})")


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> dict[str, Path]:
    """Test programs by name."""
    return _runtime_programs.build(PROGRAMS, tmp_path_factory.mktemp("runtime"))


def _shared_library(path: Path, source: str) -> Path:
    language = "c++" if "extern" in source else "c"
    flags = FLAGS if language == "c++" else ["-fPIC"]
    run(compiler(), "-x", language, *flags, "-shared", "-", "-o", path, input=source)
    return path


def _driver_library(path: Path, *, without: str = "", init_result: int = 0) -> Path:
    """A library with the driver's symbols; all functions but cuInit succeed and do nothing."""
    source = "int cuGetErrorName(int e, const char** n)"
    source += ' { return *n = e == 100 ? "CUDA_ERROR_NO_DEVICE" : 0, 0; }\n'
    for name in _DRIVER_FUNCTIONS:
        if name != without:
            source += f"int {name}(void) {{ return {init_result if name == 'cuInit' else 0}; }}\n"
    return _shared_library(path, source)


def test_every_source_is_tested():
    programs = PROGRAMS | CACHE_PROGRAMS
    tested = {part for parts in programs.values() for part in parts}
    sources = [path for folder in ("driver", "jit") for path in (CSRC / folder).glob("*.cc")]
    assert tested == {f"{p.parent.name}/{p.stem}" for p in sources}


def test_headers_that_a_source_reaches(programs):
    run(programs["headers_test"])


def test_interrupts(programs):
    run(programs["interrupts_test"])


def test_forked_children_find_locks_free(programs):
    run(programs["fork_test"])


# ---- NVRTC -------------------------------------------------------------------------------------


@pytest.mark.parametrize("major", [13, 12])
def test_nvrtc_compiles_wgmma(programs, major):
    run(programs["runtime_nvrtc_test"], "compile", major, _nvrtc(major))


def test_nvrtc_without_run_path_finds_its_builtins(programs, tmp_path):
    # As in the wheel of CUDA 13.0. Same length, so that no offset in the file moves.
    original = _nvrtc(13)
    binary = original.read_bytes()
    assert b"$ORIGIN\0" in binary
    library = tmp_path / original.name
    library.write_bytes(binary.replace(b"$ORIGIN\0", b"/absent\0"))
    for builtins in original.parent.glob("libnvrtc-builtins.so.*"):
        (tmp_path / builtins.name).symlink_to(builtins)
    run(programs["runtime_nvrtc_test"], "compile", 13, library)
    library.unlink()  # 140 MB


_NVRTC_FUNCTIONS = (
    "nvrtcGetErrorString nvrtcCreateProgram nvrtcDestroyProgram nvrtcCompileProgram"
    " nvrtcGetCUBINSize nvrtcGetCUBIN nvrtcGetProgramLogSize nvrtcGetProgramLog"
    " nvrtcSetFlowCallback"
).split()


def _stand_in_nvrtc(folder: Path, version: str, build_id: str = "none") -> Path:
    """A library that has NVRTC's names, a version, and a build id of its own."""
    major, minor = version.split(".")
    folder.mkdir(exist_ok=True)
    path = folder / f"libnvrtc.so.{major}"
    source = f"int nvrtcVersion(int* a, int* b) {{ return *a = {major}, *b = {minor}, 0; }}\n"
    source += "".join(f"int {name}(void) {{ return 1; }}\n" for name in _NVRTC_FUNCTIONS)
    flags = [f"-Wl,--build-id={build_id}", f"-Wl,-soname,{path.name}"]
    run(compiler(), "-x", "c", "-fPIC", "-shared", "-", *flags, "-o", path, input=source)
    return path


@pytest.fixture(scope="module")
def find_nvrtc(programs):
    """Returns the lines that the program prints of the NVRTC it finds among stand-ins."""

    def find(*candidates, loaded="", chosen="", major=0) -> list[str]:
        command = [programs["runtime_nvrtc_test"], "find", loaded, chosen, major, *candidates]
        return run(*command).splitlines()

    return find


def test_nvrtc_of_the_plugin_goes_first_then_a_loaded_one_then_the_candidates(find_nvrtc, tmp_path):
    n13, other_13, n12, old = (
        _stand_in_nvrtc(tmp_path / name, version)
        for name, version in [("a", "13.0"), ("b", "13.1"), ("c", "12.9"), ("d", "12.8")]
    )
    for options, found in [
        (dict(major=12), n12),
        (dict(major=13), n13),
        (dict(), n13),
        (dict(loaded=other_13), other_13),
        (dict(loaded=other_13, major=13), other_13),
        (dict(loaded=other_13, major=12), n12),
        (dict(loaded=n12), n12),
        (dict(loaded=old), n13),
        (dict(loaded=other_13, chosen=n12, major=13), n12),
    ]:
        assert find_nvrtc(n13, n12, **options)[0] == str(found), options
    # Nothing of the plugin's version: any is better than none.
    assert find_nvrtc(n13, major=12)[0] == str(n13)


def test_nvrtc_chosen_by_the_user_is_used_or_an_error(find_nvrtc, tmp_path):
    good, old = _stand_in_nvrtc(tmp_path / "a", "13.0"), _stand_in_nvrtc(tmp_path / "b", "12.8")
    assert find_nvrtc(good, chosen=old) == [
        f"JAX_FP8GEMM_NVRTC names {old}, which cannot be used ({old} is NVRTC 12.8, older than"
        " 12.9); name an NVRTC 12.9 or newer, or unset it."
    ]
    (message,) = find_nvrtc(good, chosen="/absent.so", loaded=good)
    assert "JAX_FP8GEMM_NVRTC names /absent.so" in message and "cannot open" in message


def test_nvrtc_too_old(find_nvrtc, tmp_path):
    old = _stand_in_nvrtc(tmp_path / "a", "12.8")
    (message,) = find_nvrtc(old, major=12)
    assert message.count(f"{old} is NVRTC 12.8, older than 12.9") == 1
    assert "of version 12.9 or newer" in message
    assert 'pip install --upgrade "jax[cuda13]" or "jax[cuda12]"' in message.replace("`", "")


def test_builds_of_one_nvrtc_version_differ_in_identity(find_nvrtc, tmp_path):
    first = _stand_in_nvrtc(tmp_path / "a", "13.0", "0xfeedbac1")
    copy = tmp_path / "copy.so"
    shutil.copy(first, copy)
    patched = _stand_in_nvrtc(tmp_path / "b", "13.0", "0xfeedbac2")
    assert find_nvrtc(first)[1] == find_nvrtc(copy)[1] == "build-id feedbac1"
    assert find_nvrtc(patched)[1] == "build-id feedbac2"


def test_nvrtc_without_a_build_id_is_known_by_its_file(find_nvrtc, tmp_path):
    library = _stand_in_nvrtc(tmp_path / "a", "13.0")
    before = find_nvrtc(library)[1]
    assert before.startswith(f"file {library.stat().st_size} bytes, modified ")
    os.utime(library, ns=(0, library.stat().st_mtime_ns + 1_000_000))
    assert find_nvrtc(library)[1] != before


@pytest.mark.parametrize("major", [13, 12])
def test_nvrtc_wheels_have_build_ids(find_nvrtc, major):
    assert find_nvrtc(_nvrtc(major))[1].startswith("build-id ")


def test_the_extra_for_cuda_12_brings_an_nvrtc_that_is_accepted():
    """jax[cuda12] alone is content with 12.8."""
    source = (CSRC / "jit/nvrtc.cc").read_text()
    major, minor = re.search(r"kMinVersion = \{(\d+), (\d+)\}", source).groups()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert f"nvidia-cuda-nvrtc-cu12>={major}.{minor},<13" in extras["cuda12"]


def test_nvrtc_missing(programs):
    run(programs["runtime_nvrtc_test"], "missing")


@pytest.mark.parametrize("major", [13, 12])
def test_nvrtc_found_after_a_failure(programs, major):
    run(programs["runtime_nvrtc_test"], "missing", _nvrtc(major))


# ---- Driver ------------------------------------------------------------------------------------


def test_driver_calls_and_checks(programs, tmp_path):
    run(programs["runtime_driver_test"], "fake", _stand_in_nvrtc(tmp_path, "13.5"))


def test_driver_unusable(programs, tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_text("not a library")
    old = _driver_library(tmp_path / "old.so", without="cuTensorMapEncodeTiled")
    no_device = _driver_library(tmp_path / "no_device.so", init_result=100)
    run(programs["runtime_driver_test"], "load", broken, old, no_device)


def test_driver_missing(programs):
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        run(programs["runtime_driver_test"], "no-cuda")
    else:
        pytest.skip("this machine has an NVIDIA driver")


def test_driver_found(programs, tmp_path):
    _driver_library(tmp_path / "libcuda.so.1")
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    run(programs["runtime_driver_test"], "cuda", env=environment)


def test_sim_driver(programs, tmp_path):
    library = _shared_library(tmp_path / "libsim.so", _SIM_SOURCE)
    run(programs["runtime_driver_test"], "sim", library)
