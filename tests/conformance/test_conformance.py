# SPDX-License-Identifier: Apache-2.0
"""Micro-kernels: the simulator against NumPy models, a GPU against the simulator, byte for byte."""

import dataclasses
import json
import shutil

import golden
import numpy as np
import pytest
import tma_cases
import worlds
from catalogue import KERNELS
from conformance_models import round_to_bfloat16, round_to_float16
from drivers import DriverError, SimulatedGpu
from gpu_runs import run_on_gpu
from problems import Case

CASES = worlds.all_cases()
GOLDEN_FILES = sorted(golden.FOLDER.glob("*.json"))
HOPPER_NUMERICS = 1
EXACT_NUMERICS = 0
ALL_SEEDS = 4  # of the simulator's schedules; timing modes take turns


@pytest.fixture(scope="session")
def simulator(request) -> SimulatedGpu:
    """The simulator with the micro-kernels in it; built once per state of the sources."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return SimulatedGpu(worlds.build_simulator(request.config.cache.mkdir("conformance")))


def _simulate(simulator: SimulatedGpu, case: Case, seed: int = 1) -> bytes:
    simulator.set_options(seed=seed, timing=seed % 3, numerics=HOPPER_NUMERICS)
    return simulator.run(KERNELS[case.kernel], case.problem)


def _assert_same(got: bytes, want: bytes, what: str) -> None:
    """Compares bytes; a failure shows the first words that differ, as bits and as floats."""
    if got == want:
        return
    assert len(got) == len(want), f"{what}: {len(got)} bytes, expected {len(want)}"
    tail = len(got) % 4
    x, y = (np.frombuffer(data[: len(data) - tail], np.uint32) for data in (got, want))
    where = np.flatnonzero(x != y)
    lines = [f"{what}: {where.size} of {x.size} words differ (word: got, expected)"]
    for i in where[:8]:
        values = (x[i : i + 1].view(np.float32)[0], y[i : i + 1].view(np.float32)[0])
        lines.append(f"  {i}: {x[i]:08x}, {y[i]:08x} (as float {values[0]!s}, {values[1]!s})")
    pytest.fail("\n".join(lines), pytrace=False)


# ---- On the CPU --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.documented], ids=str)
def test_simulator_gives_what_the_model_says(simulator, case):
    for seed in range(ALL_SEEDS):
        _assert_same(_simulate(simulator, case, seed), case.expected, f"{case}, seed {seed}")


def test_every_kernel_has_a_case():
    assert {case.kernel for case in CASES.values()} == set(KERNELS)


def _with_tensor(case: Case, **changes) -> Case:
    tensor = dataclasses.replace(case.problem.tensors[0], **changes)
    problem = dataclasses.replace(case.problem, tensors=(tensor, *case.problem.tensors[1:]))
    return dataclasses.replace(case, problem=problem)


def _with_args(case: Case, *args: int) -> Case:
    problem = dataclasses.replace(case.problem, args=args)
    return dataclasses.replace(case, problem=problem)


def _wrong_cases() -> dict[str, Case]:
    """Cases run on something slightly else than what was expected of them."""
    load, store = CASES["tma_load.u8.sw128.inside"], CASES["tma_store.bf16.sw128.inside"]
    mma = CASES["wgmma.random.block.n112"]
    return {
        "load_swizzle": _with_tensor(load, swizzle=0),
        "load_column": _with_args(load, load.problem.args[0], 16, 0, load.problem.args[3]),
        "store_swizzle": _with_tensor(store, swizzle=0),
        "mma_accumulates": _with_args(mma, 0, 1, 0),
        "mma_rows": _with_args(mma, 0, 0, 8),
    }


@pytest.mark.parametrize("name", _wrong_cases())
def test_comparison_can_fail(simulator, name):
    case = _wrong_cases()[name]
    assert _simulate(simulator, case) != case.expected


def test_accumulation_cases_tell_the_numerics_apart(simulator):
    """Exact float32 accumulation gives other bits wherever the 13-bit rule matters."""
    names = ("vanishing.float8_e4m3fn", "long_accumulator", "many_small", "random.block.n256")
    for case in (CASES[f"wgmma.{name}"] for name in names):
        simulator.set_options(numerics=EXACT_NUMERICS)
        assert simulator.run(KERNELS[case.kernel], case.problem) != case.expected, case


def test_a_hang_is_reported(simulator):
    """One byte too many announced: the barrier's phase never completes."""
    case = CASES["tma_load.u8.sw128.inside"]
    num_bytes, *rest = case.problem.args
    with pytest.raises(DriverError, match="tx"):
        _simulate(simulator, _with_args(case, num_bytes + 16, *rest))


@pytest.mark.parametrize("case", tma_cases.trapping(), ids=str)
def test_what_traps_a_gpu_is_refused(simulator, case):
    with pytest.raises(DriverError, match="multiple of 16 bytes, or a GPU traps"):
        _simulate(simulator, case)


def test_models_of_rounding_agree_with_numpy():
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(4096) * np.exp2(rng.integers(-30, 20, 4096))).astype(np.float32)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    np.testing.assert_array_equal(round_to_float16(bits), halves)
    error = (round_to_bfloat16(bits).astype(np.uint32) << 16).view(np.float32) - values
    assert np.all(np.abs(error) <= np.abs(values) * 2.0**-8)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("nvrtc", worlds.find_all(), ids=lambda nvrtc: nvrtc.name)
def test_micro_kernels_compile_for_a_gpu(nvrtc):
    compiled = worlds.compile_for_gpu(nvrtc)
    assert compiled.cubin.startswith(b"\x7fELF")
    remarks = [line for line in compiled.log.splitlines() if "(C75" in line]
    assert not remarks, remarks
    spills = [line for line in compiled.log.splitlines() if "bytes spill stores" in line]
    assert len(spills) == len(KERNELS)
    assert all("0 bytes stack frame, 0 bytes spill stores" in line for line in spills), spills


# ---- The code that drives a GPU, on a stand-in for libcuda --------------------------------------


@pytest.fixture
def stand_in(simulator, request, tmp_path, monkeypatch):
    """Puts a libcuda over the simulator where the processes that want a GPU find it."""
    folder = request.config.cache.mkdir("conformance")
    worlds.build_stand_in(worlds.build_simulator(folder), tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    return tmp_path


# One case of each kind of kernel whose result does not depend on the numerics.
_STAND_IN_CASES = (
    "special_registers",
    "tma_load.u8.sw128.past_corner",
    "tma_store.bf16.sw128.inside",
    "tma_multicast.crossed",
    "wgmma.n64.unit_a",
    "epilogue.n96.bf16",
    "mbarrier.remote",
    "register_budgets",
)


def test_gpu_driver_code(stand_in):
    results = run_on_gpu(_STAND_IN_CASES, stand_in, b"\x7fELF")
    assert not results.failures
    assert results.device == {"gpu": "stand-in", "driver_cuda_version": "13000"}
    assert results.outputs == {name: CASES[name].expected for name in _STAND_IN_CASES}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "message"), [("STAND_IN_HANGS", "it hangs"), ("STAND_IN_FAULTS", "77")]
)
def test_a_bad_case_costs_only_itself(stand_in, monkeypatch, variable, message):
    monkeypatch.setenv(variable, "tma_store")
    results = run_on_gpu(_STAND_IN_CASES, stand_in, b"\x7fELF", case_limit_s=2)
    (failure,) = results.failures.items()
    assert failure[0] == "tma_store.bf16.sw128.inside" and message in failure[1]
    assert len(results.outputs) == len(_STAND_IN_CASES) - 1


def test_an_unloadable_cubin_is_reported(stand_in):
    results = run_on_gpu(["special_registers"], stand_in, b"no image")
    assert "cuLibraryLoadData returned 200" in results.failures["special_registers"]


# ---- Golden files ------------------------------------------------------------------------------

_MACHINE = dict.fromkeys(golden.REQUIRED, "x")


def test_golden_file_round_trip(tmp_path):
    case = CASES["special_registers"]
    other = bytes(reversed(case.expected))
    entries = {"same": golden.entry(case, case.expected), "other": golden.entry(case, other)}
    golden.write(tmp_path / "gpu.json", _MACHINE, entries)
    content = golden.read(tmp_path / "gpu.json")
    assert content["cases"] == entries and content["machine"] == _MACHINE
    assert "bytes" not in entries["same"]
    assert golden.output_bytes(case, entries["same"]) == case.expected
    assert golden.output_bytes(case, entries["other"]) == other


def test_golden_files_are_written_only_from_a_gpu(tmp_path):
    with pytest.raises(golden.GoldenError, match="gpu"):
        golden.write(tmp_path / "gpu.json", {**_MACHINE, "gpu": ""}, {})
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"format": 0}', "format must be 1"),
        ('{"format": 1, "machine": {}}', "machine has no 'gpu'"),
        (json.dumps({"format": 1, "machine": _MACHINE, "cases": {"a": {}}}), "case 'a'"),
    ],
)
def test_damaged_golden_file_is_named(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(golden.GoldenError, match=f"bad.json: {message}"):
        golden.read(tmp_path / "bad.json")


def test_problem_digest_sees_every_input():
    case = CASES["tma_load.u8.sw128.inside"]
    changed = [_with_tensor(case, swizzle=0), _with_tensor(case, background=0)]
    changed += [_with_args(case, 1, 2), dataclasses.replace(case, kernel="tma_store")]
    digests = {golden.problem_digest(c) for c in (case, *changed)}
    assert len(digests) == 1 + len(changed)


@pytest.mark.skipif(not GOLDEN_FILES, reason="no golden file: no GPU has run the cases yet")
@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_simulator_gives_what_a_gpu_gave(simulator, path):
    recorded = golden.read(path)["cases"]
    assert recorded
    for name, entry in recorded.items():
        case = CASES.get(name)
        assert case is not None, f"{path.name}: no case {name!r} any more: update on a GPU"
        assert golden.problem_digest(case) == entry["problem"], f"{name} changed: update on a GPU"
        _assert_same(_simulate(simulator, case), golden.output_bytes(case, entry), name)


# ---- On a GPU ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def gpu_results(tmp_path_factory):
    """What the GPU makes of all cases."""
    return run_on_gpu(list(CASES), tmp_path_factory.mktemp("gpu"))


@pytest.mark.hopper
@pytest.mark.parametrize("name", CASES)
def test_gpu_gives_what_the_simulator_gives(simulator, gpu_results, name):
    if failure := gpu_results.failures.get(name):
        pytest.fail(f"{name}: {failure}", pytrace=False)
    _assert_same(gpu_results.outputs[name], _simulate(simulator, CASES[name]), name)


@pytest.mark.hopper
@pytest.mark.parametrize("nvrtc", worlds.find_all(), ids=lambda nvrtc: nvrtc.name)
def test_cubin_of_every_nvrtc_loads(nvrtc, tmp_path):
    """A newer compiler's machine code on the driver at hand."""
    name = "special_registers"
    results = run_on_gpu([name], tmp_path, worlds.compile_for_gpu(nvrtc).cubin)
    assert not results.failures, results.failures
    assert results.outputs[name] == CASES[name].expected
