# SPDX-License-Identifier: Apache-2.0
"""Every kernel that can be chosen compiles, with each NVRTC, to the code it is meant to be."""

import importlib.util
import os

import pytest
from _kernels import ARCHITECTURE, CSRC, VERBOSE, Job, KernelFarm, device_headers
from _nvrtc import find_all
from _sass import (
    Expected,
    Golden,
    disassemble,
    find_nvdisasm,
    gate_failures,
    kernel_facts,
    log_failures,
    parse_cubin,
    ratchet_failures,
)
from _tiers import covering, slow_unless

if importlib.util.find_spec("jax_fp8gemm._core") is None:
    pytest.skip("needs the compiled extension jax_fp8gemm._core", allow_module_level=True)

import update_sass_golden  # noqa: E402

from jax_fp8gemm._src.native.extension import core  # noqa: E402

pytestmark = pytest.mark.skipif(not find_all(), reason="no NVRTC wheel is installed")
needs_nvdisasm = pytest.mark.skipif(
    find_nvdisasm() is None, reason="nvidia-cuda-nvdisasm is not installed"
)

KEYS = core().candidate_configs()
JOBS = [Job(nvrtc, key) for nvrtc in find_all() for key in KEYS]
# Of the fast tier: a covering set with the newest NVRTC, and a sample of it with each older one.
COVERING = covering(KEYS)
FAST_JOBS = {
    Job(nvrtc, key)
    for i, nvrtc in enumerate(find_all())
    for key in (COVERING if i == 0 else COVERING[:: len(COVERING) // 10])
}
FAMILIES = tuple(dict.fromkeys(key.partition(".")[0] for key in KEYS))
# One per family, and one per number of consumers: the candidates are listed without their variants
# for PDL.
PDL_SAMPLES = [
    *(next(key for key in KEYS if key.startswith(f"{family}.")) + ".pdl" for family in FAMILIES),
    *(next(key for key in KEYS if f".w{w}." in key) + ".pdl" for w in (2, 3)),
]
MAX_SMEM_BYTES = 232448
MAX_THREADS = 1024
# Operand types as wgmma and its SASS name them.
MNEMONICS = {"float8_e4m3fn": "E4M3", "float8_e5m2": "E5M2"}

every_job = pytest.mark.parametrize(
    "job", [slow_unless(job in FAST_JOBS, job, id=str(job)) for job in JOBS]
)


@pytest.fixture(scope="session")
def farm(request):
    """Compiles what the selected tests need, ahead of them; pytest-xdist has workers instead."""
    wanted = {
        item.callspec.params["job"]: None
        for item in request.session.items
        if "farm" in getattr(item, "fixturenames", ())
    }
    farm = KernelFarm(list(wanted), core(), threads=1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    yield farm
    farm.close()


def expected_code(key: str) -> Expected:
    """What the configuration `key` implies for its code."""
    config = core().describe_config(key)
    block_n, row_slices = config["block_n"], config["row_slices"]
    # A thread has two rows of a row slice, so two scales of A. With 128x128 scales of B it
    # multiplies each with those of the one or two column blocks; with 1x128 scales each with those
    # of its block_n / 4 columns, which it loads in pairs. It loads while the tensor core works;
    # ptxas may move one load before the first wgmma.
    row_scales = 2 * row_slices
    is_1d1d = config["scaling"] == "1d1d"
    column_loads = block_n // 8 if is_1d1d else 0
    loads = row_scales + (column_loads or 1)
    products = row_scales * (block_n // 4 if is_1d1d else config["scale_blocks_n"])
    # Releases to the cluster, where CTAs share operands: of a group table at the start, of
    # everything at the end. Sums of split K are released by the stores themselves.
    is_shared = config["cluster_m"] * config["cluster_n"] > 1
    has_table = config["kind"] in ("ragged", "masked", "k_grouped")
    releases = is_shared + (is_shared and has_table)
    return Expected(
        kernel=f"sm90_fp8_gemm_{config['family']}",
        scale_products=products,
        scale_loads=loads,
        scale_loads_under_mma=loads - 1,
        gpu_barriers=releases,
        block_n=block_n,
        row_slices=row_slices,
        num_consumers=config["num_consumers"],
        moves_registers=config["moves_registers"],
        consumer_registers=config["consumer_registers"],
        producer_registers=config["producer_registers"],
        a_type=MNEMONICS[config["a_type"]],
        b_type=MNEMONICS[config["b_type"]],
    )


@needs_nvdisasm
@every_job
def test_kernel(job, farm):
    """The log is clean, the code passes every gate, and no ratcheted number is 5% worse."""
    kernel = farm.get(job)
    failures = log_failures(kernel.log) + gate_failures(kernel.facts, expected_code(job.key))
    golden = Golden.load(job.nvrtc.name)
    if golden is not None:
        assert job.key in golden.kernels, "new kernel: run python tests/update_sass_golden.py"
        failures += ratchet_failures(kernel.facts, golden.kernels[job.key])
    assert failures == []


@pytest.mark.sampled(4)
@needs_nvdisasm
@pytest.mark.parametrize("key", PDL_SAMPLES)
def test_kernel_of_a_dependent_launch_waits_for_the_one_before(key):
    """A launch with PDL may start early: ACQBULK is griddepcontrol.wait."""
    nvrtc = find_all()[0]
    options = [*core().nvrtc_options(), VERBOSE]
    compiled = nvrtc.compile(core().kernel_source(key), options, core().embedded_headers())
    cubin = parse_cubin(compiled.cubin)
    (code,) = disassemble([cubin.code])
    assert [i.name for i in code].count("ACQBULK") == 1
    facts = kernel_facts(cubin, code)
    assert log_failures(compiled.log) + gate_failures(facts, expected_code(key)) == []


@pytest.mark.parametrize("nvrtc", find_all(), ids=lambda n: n.name)
def test_golden_numbers_are_of_present_kernels(nvrtc):
    golden = Golden.load(nvrtc.name)
    if golden is None:
        pytest.skip(f"no golden numbers for NVRTC {nvrtc.name}: tests/update_sass_golden.py")
    assert sorted(golden.kernels) == sorted(KEYS), "run python tests/update_sass_golden.py"


def test_configurations_fit_the_hardware():
    for key in KEYS:
        config = core().describe_config(key)
        assert config["smem_bytes"] <= MAX_SMEM_BYTES, key
        assert config["threads"] <= MAX_THREADS, key


def test_device_computes_the_same_shared_memory_layout():
    """Compiles a program of static assertions: the host's launch size is the kernel's layout."""
    asserts = "\n".join(_layout_assertion(core().describe_config(key)) for key in KEYS)
    source = f"#include <shared/smem_layout.h>\nusing namespace fp8gemm;\n{asserts}\n"
    find_all()[0].compile(source, [ARCHITECTURE, "--std=c++20"], core().embedded_headers())


def _layout_assertion(config: dict) -> str:
    kinds = {
        "dense": "kDense",
        "ragged": "kRagged",
        "contiguous": "kContiguous",
        "masked": "kMasked",
        "k_grouped": "kKGrouped",
    }
    out_types = {"bfloat16": "kBF16", "float16": "kF16", "float32": "kF32"}
    numbers = (
        "block_m",
        "block_n",
        "num_consumers",
        "num_stages",
        "cluster_m",
        "cluster_n",
        "split_k",
    )
    fields = [
        f".kind = GemmKind::{kinds[config['kind']]}",
        f".scaling = Scaling::k{config['scaling'].upper()}",
        *(f".{name} = {config[name]}" for name in numbers),
        f".d_type = OutType::{out_types[config['d_type']]}",
        f".accumulate = {str(config['accumulate']).lower()}",
    ]
    bytes_ = f"launch_smem_bytes(GemmConfig{{{', '.join(fields)}}})"
    return f"static_assert({bytes_} == {config['smem_bytes']});"


def test_embedded_headers_are_those_of_the_source_tree():
    """A stale build would make every other test here look at old kernels."""
    assert dict(core().embedded_headers()) == dict(device_headers())


def test_golden_numbers_are_not_those_of_a_stale_build(monkeypatch):
    name = next(iter(device_headers()))
    monkeypatch.setattr(update_sass_golden, "device_headers", lambda: device_headers() | {name: ""})
    monkeypatch.delattr(update_sass_golden, "KernelFarm")  # nothing is compiled
    with pytest.raises(SystemExit, match="make develop"):
        update_sass_golden.main()


def test_options_name_the_architecture_and_no_paths():
    options = core().nvrtc_options()
    assert ARCHITECTURE in options
    assert not [option for option in options if option.startswith(("-I", "--include-path"))]


def test_wgmma_table_is_what_its_generator_writes():
    generator = CSRC / "kernels/mma/generate_wgmma_table.py"
    spec = importlib.util.spec_from_file_location("generate_wgmma_table", generator)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert generator.with_name("wgmma_fp8_table.inc").read_text() == module.table()
