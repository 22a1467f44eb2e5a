# SPDX-License-Identifier: Apache-2.0
"""What the extension refuses by name, how it tells kernels apart, and what it leaves alone."""

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import _sanitizers
import jax
import jax.numpy as jnp
import pytest
import update_tables

from jax_fp8gemm._src.native import sim_library
from jax_fp8gemm._src.native.gemm_problem import Problem

SHARED = Path(__file__).resolve().parents[1] / "csrc" / "shared"
PROBLEM = Problem(m=128, n=128, k=128)
CALL = PROBLEM._asdict() | {"pdl": False, "sm_limit": 0, "config": ""}
QUANTIZER = {
    "layout": "rows",
    "batches": 1,
    "rows": 4,
    "columns": 128,
    "num_groups": 0,
    "x_dtype": "bfloat16",
    "dtype": "float8_e4m3fn",
    "scale_format": "pow2",
}


def call(target: str, results, attributes) -> None:
    """Runs a custom call on the CPU, whose attributes are read before its operands."""
    jax.block_until_ready(jax.ffi.ffi_call(target, results)(jnp.zeros((4, 4)), **attributes))


@pytest.mark.usefixtures("simulator_library")
@pytest.mark.parametrize("name", ["kind", "scaling", "a_dtype", "b_dtype", "d_dtype", "config"])
def test_products_refuse_names_they_do_not_know(extension, name):
    extension.core()
    result = jax.ShapeDtypeStruct((128, 128), jnp.bfloat16)
    with pytest.raises(jax.errors.JaxRuntimeError, match="operands, got 1"):
        call(extension.GEMM_TARGET, result, CALL)
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNIMPLEMENTED.*2d2d"):
        call(extension.GEMM_TARGET, result, CALL | {name: "2d2d"})


@pytest.mark.usefixtures("simulator_library")
@pytest.mark.parametrize("name", ["layout", "x_dtype", "dtype", "scale_format"])
def test_quantizers_refuse_names_they_do_not_know(extension, name):
    extension.core()
    results = [
        jax.ShapeDtypeStruct((1, 4, 128), jnp.float8_e4m3fn),
        jax.ShapeDtypeStruct((1, 4, 1), jnp.float32),
    ]
    with pytest.raises(jax.errors.JaxRuntimeError, match="x must have shape"):
        call(extension.QUANTIZE_TARGET, results, QUANTIZER)
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNIMPLEMENTED.*pow3"):
        call(extension.QUANTIZE_TARGET, results, QUANTIZER | {name: "pow3"})


def test_bindings_refuse_names_they_do_not_know(extension):
    core = extension.core()
    fields = PROBLEM._asdict()
    for name in ("kind", "scaling", "a_dtype", "b_dtype", "d_dtype"):
        with pytest.raises(RuntimeError, match="2d2d"):
            core.ranked_configs(fields | {name: "2d2d"}, "cuda")
    with pytest.raises(RuntimeError, match="backend must be cuda or sim, got 'rocm'"):
        core.ranked_configs(fields, "rocm")
    with pytest.raises(RuntimeError, match="scale_format must be float32 or pow2, got 'f32'"):
        core.quantize_key("rows", "bfloat16", "float8_e4m3fn", "f32")


@pytest.mark.parametrize("number", [-1, 1025, 2**32 + 4])  # which has the low half of 4
@pytest.mark.parametrize("name", ["num_sms", "sm_limit", "num_groups"])
def test_numbers_out_of_range_are_refused(extension, simulator_library, name, number):
    extension.core()
    result = jax.ShapeDtypeStruct((128, 128), jnp.bfloat16)
    with pytest.raises(jax.errors.JaxRuntimeError, match="operands, got 1"):
        call(extension.GEMM_TARGET, result, CALL)  # whose plan is kept
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=f"{name} must be from 1 to .*got {number}"
    ):
        call(extension.GEMM_TARGET, result, CALL | {name: number})


def test_tables_of_python_are_those_of_csrc(extension):
    assert update_tables.PATH.read_text() == update_tables.text()


def test_kinds_have_candidates_for_what_they_say(extension):
    core = extension.core()
    described = [core.describe_config(key) for key in core.candidate_configs()]
    for name, kind in core.kinds().items():
        of_kind = [config for config in described if config["kind"] == name]
        assert {config["scaling"] for config in of_kind} == set(kind["scalings"])
        assert any(config["accumulate"] for config in of_kind) == kind["accumulates"]
        assert (kind["group_data"] == "none") == (name == "dense")
    assert core.limits()["block"] == core.limits()["contiguous_alignment"] == 128


def fields_of(struct: str, header: str) -> list[str]:
    """Returns the names of the data members of a struct in csrc/shared."""
    text = (SHARED / header).read_text()
    body = text[text.index(f"struct {struct} {{") :]
    body = body[: body.index("\n};")]
    return re.findall(r"^  [\w:]+ (\w+) = [^;(]+;", body, re.MULTILINE)


def pairs_that_differ_in_one_field(described: dict[str, dict], fields: list[str]) -> dict:
    """Returns, for each field, two keys whose configurations differ in it alone."""
    pairs = {}
    for field in fields:
        alike = defaultdict(dict)
        for key, config in described.items():
            rest = tuple(config[other] for other in fields if other != field)
            alike[rest][config[field]] = key
        pairs[field] = next((list(v.values())[:2] for v in alike.values() if len(v) > 1), None)
    return pairs


def test_every_field_of_a_configuration_reaches_key_and_source(extension):
    core = extension.core()
    fields = fields_of("GemmConfig", "gemm_config.h")
    assert len(fields) == 14
    keys = core.candidate_configs()
    keys += [keys[0] + ".pdl"]  # and those of no candidate, which differ in w alone
    keys += [f"1d2d.m128n64.w{w}.s4.c1x1.e4m3.e4m3.bf16" for w in (1, 2)]
    pairs = pairs_that_differ_in_one_field({key: core.describe_config(key) for key in keys}, fields)
    for field, pair in pairs.items():
        assert pair is not None, f"no two configurations differ in {field} alone"
        first, second = map(core.kernel_source, pair)
        assert pair[0] != pair[1] and first != second, field
        assert f".{field} = " in first


def test_every_field_of_a_quantizer_reaches_key_and_source(extension):
    core = extension.core()
    fields = fields_of("QuantizeConfig", "quantize_config.h")
    assert fields == ["layout", "x_type", "type", "pow2"]  # the order of a key's parts
    described = {
        key: dict(zip(fields, key.split("."), strict=True)) for key in core.quantize_configs()
    }
    for field, pair in pairs_that_differ_in_one_field(described, fields).items():
        first, second = map(core.kernel_source, pair)
        line = re.compile(rf"\.{field} = .*")
        assert line.search(first)[0] != line.search(second)[0]


def test_planning_for_the_simulator_asks_for_no_gpu(extension, monkeypatch):
    def first_gpu():
        raise AssertionError("CUDA would be initialized")

    monkeypatch.setattr(extension, "_first_gpu", first_gpu)
    assert extension.planning_num_sms("sim", None) == 4
    assert extension.planning_num_sms("sim", 2) == 2
    assert extension.planning_gpu("sim") == ""


_SIMULATE = """
import sys
import jax.numpy as jnp
import jax_fp8gemm as fp8
from jax_fp8gemm._src.native import extension
extension.core().set_sim_library(sys.argv[1])
x, w = fp8.quantize(jnp.ones((4, 128))), fp8.quantize(jnp.ones((16, 128)), (128, 128))
fp8.gemm(x, w, implementation="sim").block_until_ready()
"""


@pytest.mark.usefixtures("simulator_library")
def test_simulator_without_its_kernels_says_what_is_missing(extension, replace_ffi, tmp_path):
    alone = shutil.copy(extension.sim_library(), tmp_path)
    run = subprocess.run([sys.executable, "-c", _SIMULATE, alone], capture_output=True, text=True)
    assert run.returncode != 0
    assert "UNIMPLEMENTED" in run.stderr and sim_library.KERNELS in run.stderr
    assert "FP8GEMM_SIM_KERNELS=ON" in run.stderr
    replace_ffi(sim_library=lambda: Path(alone))
    assert sim_library.missing().startswith("installed without its kernels")
    replace_ffi(sim_library=lambda: tmp_path / "none.so")
    assert not sim_library.available()


def test_nvrtc_is_searched_for_the_plugin_that_is_installed(extension, monkeypatch):
    def having(*majors):
        plugins = [f"jax_cuda{major}_plugin" for major in majors]
        monkeypatch.setattr(
            extension.importlib.util, "find_spec", lambda name: name in plugins or None
        )
        return extension._plugin_cuda_major()

    assert [having(), having(12), having(13), having(12, 13)] == [0, 12, 13, 13]


_CSRC = SHARED.parent
_PARAMS_SOURCES = (
    "gemm/config_key",
    "gemm/cost_model",
    "gemm/problem",
    "gemm/sm90_fp8_gemm",
    "quantize/quantize_key",
    "quantize/quantize_problem",
    "driver/driver",
    "driver/fork_mutex",
    "driver/interrupts",
    "driver/tensor_map",
)


def sources_of(*layers):
    """Returns all sources of layers of csrc, as `run_with_simulator` takes them."""
    return [
        f"{layer}/{path.stem}" for layer in layers for path in sorted((_CSRC / layer).glob("*.cc"))
    ]


def run_with_simulator(name, parts, extension, folder):
    """Builds a test of tests/cpp with sources of csrc, and runs it over the simulator."""
    compiler = shutil.which("g++") or pytest.skip("needs g++")
    cpp, program = Path(__file__).parent / "cpp", folder / name
    sources = [cpp / f"{name}.cc", *(_CSRC / f"{part}.cc" for part in parts)]
    flags = ["-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", f"-I{_CSRC}", f"-I{cpp}"]
    flags += _sanitizers.FLAGS
    subprocess.run([compiler, *flags, *sources, "-ldl", "-pthread", "-o", program], check=True)
    subprocess.run([program, extension.sim_library()], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("simulator_library")
def test_launches_on_more_than_2_to_the_31_elements(extension, tmp_path):
    """Encodes them with the simulator's checks, without memory behind the addresses."""
    run_with_simulator("gemm_params_test", _PARAMS_SOURCES, extension, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("simulator_library")
def test_quantizers_take_buffers_at_any_address(extension, tmp_path):
    """XLA may pass a slice where it lies: --xla_gpu_enable_dynamic_slice_fusion."""
    layers = sources_of("driver", "jit", "quantize")
    run_with_simulator("quantize_address_test", layers, extension, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("simulator_library")
def test_products_take_buffers_at_any_address_or_refuse_them(extension, tmp_path):
    layers = sources_of("driver", "jit", "gemm", "quantize")
    run_with_simulator("gemm_address_test", layers, extension, tmp_path)


# An NVRTC of version 13.0 that compiles everything to the same four bytes.
_NVRTC = """
#include <stddef.h>
#include <string.h>
int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, 0; }
const char* nvrtcGetErrorString(int result) { return ""; }
int nvrtcCreateProgram(void** program) { return *program = &program, 0; }
int nvrtcDestroyProgram(void** program) { return 0; }
int nvrtcCompileProgram(void) { return 0; }
int nvrtcGetCUBINSize(void* program, size_t* bytes) { return *bytes = 4, 0; }
int nvrtcGetCUBIN(void* program, char* cubin) { return memcpy(cubin, "code", 4), 0; }
int nvrtcGetProgramLogSize(void* program, size_t* bytes) { return *bytes = 0, 0; }
int nvrtcGetProgramLog(void* program, char* log) { return 0; }
int nvrtcSetFlowCallback(void* program, void* callback, void* payload) { return 0; }
"""

_PRECOMPILE = """
from jax_fp8gemm._src.native import extension
core = extension.core()
assert core.kernel_image(core.candidate_configs()[0]) == b"code"
print(core.cache_counters()["builds"], core.nvrtc_path())
"""


@pytest.mark.usefixtures("extension")
def test_another_build_of_the_same_nvrtc_version_compiles_anew(tmp_path):
    compiler = shutil.which("g++") or pytest.skip("needs g++")

    def builds_with(name: str, build_id: str) -> int:
        library = tmp_path / name
        flags = ["-w", "-fPIC", "-shared", f"-Wl,--build-id=0x{build_id}", "-o", library]
        subprocess.run([compiler, "-x", "c", "-", *flags], input=_NVRTC, text=True, check=True)
        settings = {"JAX_FP8GEMM_NVRTC": str(library), "JAX_FP8GEMM_CACHE_DIR": str(tmp_path / "c")}
        output = subprocess.run(
            [sys.executable, "-c", _PRECOMPILE],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert output[1] == str(library)
        return int(output[0])

    assert builds_with("libnvrtc.so.13", "aa01") == 1
    assert builds_with("patched.so", "aa02") == 1
    assert builds_with("copied.so", "aa01") == 0
