# SPDX-License-Identifier: Apache-2.0
"""Builds the simulator's engine with g++ and runs its C++ tests on kernels of their own."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _sanitizers
import pytest

_ROOT = Path(__file__).resolve().parents[1]
_SIM = _ROOT / "csrc" / "sim"
_CPP = _ROOT / "tests" / "cpp"
# The twins come first, so that <ptx/...> and <mma/wgmma_fp8.cuh> mean them.
_INCLUDES = [_SIM / "device", _ROOT / "csrc" / "kernels", _ROOT / "csrc", _CPP]
_FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", *_sanitizers.FLAGS]
_FLAGS += [f"-I{path}" for path in _INCLUDES]
_PROGRAMS = ("sim_driver_test", "sim_engine_test", "sim_numerics_test", "sim_rules_test")


def _run(*command: object) -> str:
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> dict[str, Path]:
    """Test programs by name, each linked with the whole simulator but its GEMM kernels."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("simulator")

    def compile_source(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        _run(compiler, *_FLAGS, "-c", source, "-o", target)
        return target

    engine = sorted([*_SIM.glob("*.cc"), *(_SIM / "engine").glob("*.cc")])
    tests = [_CPP / f"{program}.cc" for program in _PROGRAMS]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_source, tests + engine))
    for test, program in zip(objects, _PROGRAMS, strict=False):
        _run(
            compiler,
            *_sanitizers.FLAGS,
            test,
            *objects[len(tests) :],
            "-ldl",
            "-o",
            folder / program,
        )
    return {program: folder / program for program in _PROGRAMS}


@pytest.mark.slow
@pytest.mark.parametrize("program", _PROGRAMS)
def test_program_passes(programs, program):
    _run(programs[program])


def _device_functions(header: Path) -> dict[str, str]:
    """Signatures of a header's device functions by name, without parameter names and layout."""
    text = re.sub(r"//[^\n]*", "", header.read_text())
    functions = {}
    for result, name, parameters in re.findall(
        r"FP8GEMM_DEVICE\s+(\w+)\s+(\w+)\(((?:[^()]|\([^()]*\))*)\)\s*\{", text
    ):
        types = [
            re.sub(r"(\(&)?\b\w+(\))?(\[[^\]]*\])?$", r"\1\2\3", " ".join(parameter.split()))
            for parameter in parameters.split(",")
        ]
        functions[name] = f"{result} ({', '.join(types)})"
    return functions


@pytest.mark.parametrize("folder", ["ptx", "mma"])
def test_twins_declare_what_the_kernels_call(folder):
    compared = 0
    for twin in sorted((_SIM / "device" / folder).glob("*.cuh")):
        original = _ROOT / "csrc" / "kernels" / folder / twin.name
        assert _device_functions(twin) == _device_functions(original), twin.name
        compared += len(_device_functions(twin))
    assert compared >= {"ptx": 40, "mma": 1}[folder]
    originals = {path.name for path in (_ROOT / "csrc" / "kernels" / "ptx").glob("*.cuh")}
    assert originals == {path.name for path in (_SIM / "device" / "ptx").glob("*.cuh")}
