# SPDX-License-Identifier: Apache-2.0
"""Kernels compile, with each NVRTC, to the code they are meant to be.

A covering set is compiled here. That every kernel passed with these very sources stands in the
golden files, which `update_sass_golden.py` writes; an NVRTC without one compiles every kernel here.
"""

import dataclasses
import importlib.util
import os

import _kernels
import pytest
from _kernels import (
    ARCHITECTURE,
    CSRC,
    VERBOSE,
    CompiledKernel,
    Job,
    KernelFarm,
    compile_kernel,
    device_headers,
    source_digests,
)
from _nvrtc import find_all
from _sass import (
    Golden,
    disassemble,
    find_nvdisasm,
    kernel_failures,
    parse_cubin,
    ratchet_failures,
    ratchets,
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

PRODUCTS, QUANTIZERS = core().candidate_configs(), core().quantize_configs()
KEYS = [*PRODUCTS, *QUANTIZERS]
COVERING = covering(KEYS)
JOBS = [
    Job(nvrtc, key)
    for nvrtc in find_all()
    for key in (COVERING if Golden.load(nvrtc.name) else KEYS)
]
# Of the fast tier: the covering set with the newest NVRTC, a sample of it with each older one; of
# quantizers a fifth of that.
FAST_KEYS = [*covering(PRODUCTS), *covering(QUANTIZERS)[::5]]
FAST_JOBS = {
    Job(nvrtc, key)
    for i, nvrtc in enumerate(find_all())
    for key in (FAST_KEYS if i == 0 else FAST_KEYS[:: len(FAST_KEYS) // 10])
}
FAMILIES = tuple(dict.fromkeys(key.partition(".")[0] for key in PRODUCTS))
# One per family, and one per number of consumers: the candidates are listed without their variants
# for PDL.
PDL_SAMPLES = [
    *(next(k for k in PRODUCTS if k.startswith(f"{family}.")) + ".pdl" for family in FAMILIES),
    *(next(key for key in PRODUCTS if f".w{w}." in key) + ".pdl" for w in (2, 3)),
]
MAX_SMEM_BYTES = 232448
MAX_THREADS = 1024
UPDATE = "make develop, then: python tests/update_sass_golden.py"

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


def failures_of(key: str, kernel: CompiledKernel) -> list[str]:
    return kernel_failures(key, kernel.facts, kernel.opcodes, kernel.log)


@needs_nvdisasm
@every_job
def test_kernel(job, farm):
    """The log is clean, the code passes every gate, and no ratcheted number is 5% worse."""
    kernel = farm.get(job)
    failures = failures_of(job.key, kernel)
    golden = Golden.load(job.nvrtc.name)
    if golden is not None:
        assert job.key in golden.kernels, f"new kernel: {UPDATE}"
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
    assert failures_of(key, CompiledKernel.of(cubin, code, compiled.log)) == []


@pytest.mark.parametrize("nvrtc", find_all(), ids=lambda n: n.name)
def test_every_kernel_passed_with_these_sources(nvrtc):
    golden = Golden.load(nvrtc.name)
    if golden is None:
        pytest.skip(f"no golden numbers for NVRTC {nvrtc.name}: tests/update_sass_golden.py")
    assert golden.sources == source_digests(core()), UPDATE
    assert sorted(golden.kernels) == sorted(KEYS)


def test_digests_of_sources_see_code_and_judges(monkeypatch):
    """And no comments: of one family where a header is its own, of all where a judge changes."""

    class Core:
        """The extension, with something appended to one header."""

        def __init__(self, text: str) -> None:
            self.text = text

        def __getattr__(self, name):
            return getattr(core(), name)

        def kernel_headers(self, key):
            own = "fp8_quantize/sm90_quantize.cuh"
            return {
                name: text + self.text * (name == own)
                for name, text in core().kernel_headers(key).items()
            }

    before = source_digests(core())
    assert source_digests(Core("// why\n")) == before
    after = source_digests(Core("int a;\n"))
    assert {f for f in before if after[f] != before[f]} == {
        f for f in before if f.startswith("quantize")
    }
    monkeypatch.setattr(_kernels, "JUDGES", _kernels.JUDGES[:1])
    assert all(digest != before[f] for f, digest in source_digests(core()).items())


@needs_nvdisasm
def test_a_quantizer_fails_the_rules_of_others():
    source = core().kernel_source("quantize_rows.bf16.e4m3.f32")
    kernel = compile_kernel(find_all()[0], source, core().nvrtc_options())
    for key, parts in {
        "quantize_blocks.bf16.e4m3.f32": ("entry point", "LDG.E.64", "conversions", "maxima"),
        "quantize_rows.f32.e4m3.f32": ("0 LDG.E.128.CONSTANT, expected 8",),
        "quantize_rows.bf16.e5m2.f32": ("0 conversions, expected 16",),
        "quantize_transposed.bf16.e4m3.f32": ("not in vectors",),
        "quantize_rms_norm.bf16.e4m3.f32": ("wide loads", "FMUL"),
        "quantize_swiglu.bf16.e4m3.f32": ("MUFU.EX2", "expected 16"),
    }.items():
        failures = failures_of(key, kernel)
        assert all(any(part in f for f in failures) for part in parts), failures
    for field, value in {"registers": 129, "local_memory": 1, "frame_bytes": 8}.items():
        facts = dataclasses.replace(kernel.facts, **{field: value})
        (failure,) = failures_of(
            "quantize_rows.bf16.e4m3.f32", dataclasses.replace(kernel, facts=facts)
        )
        assert str(value) in failure


def test_keys_name_every_quantizer():
    # Rows, blocks, two transposed layouts without and with rows, three activations and a norm, of
    # three dtypes, two results and two kinds of scales; and float8 scaled anew.
    assert len(QUANTIZERS) == len(set(QUANTIZERS)) == 10 * 3 * 2 * 2 + 2
    assert core().quantize_key("k_grouped", "float8_e4m3fn", "float8_e4m3fn", "pow2") in QUANTIZERS
    with pytest.raises(RuntimeError, match="is not a quantize kernel"):
        core().kernel_source("quantize_rows.e4m3.e4m3.f32")


def test_configurations_fit_the_hardware():
    for key in PRODUCTS:
        config = core().describe_config(key)
        assert config["smem_bytes"] <= MAX_SMEM_BYTES, key
        assert config["threads"] <= MAX_THREADS, key


def test_device_computes_the_same_shared_memory_layout():
    """Compiles a program of static assertions: the host's launch size is the kernel's layout."""
    asserts = "\n".join(_layout_assertion(core().describe_config(key)) for key in PRODUCTS)
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


def test_golden_files_are_not_of_a_stale_build(monkeypatch):
    name = next(iter(device_headers()))
    monkeypatch.setattr(update_sass_golden, "device_headers", lambda: device_headers() | {name: ""})
    monkeypatch.delattr(update_sass_golden, "KernelFarm")  # nothing is compiled
    with pytest.raises(SystemExit, match="make develop"):
        update_sass_golden.main([])


@needs_nvdisasm
def test_an_update_judges_what_changed_and_writes_only_what_passed(tmp_path, monkeypatch, capsys):
    key, nvrtc = "quantize_rows.bf16.e4m3.f32", find_all()[0]
    monkeypatch.setattr(ratchets, "_FOLDER", tmp_path)
    monkeypatch.setattr(update_sass_golden, "families", lambda _: {"quantize_rows": [key]})

    def update(digest: str, *, accept: bool = False) -> tuple[int, list[str]]:
        monkeypatch.setattr(
            update_sass_golden, "source_digests", lambda _: {"quantize_rows": digest}
        )
        failures = update_sass_golden.update(nvrtc, accept=accept)
        return int(capsys.readouterr().out.split()[2]), failures

    assert update("one") == (1, [])
    assert update("one") == (0, [])
    today = Golden.load(nvrtc.name)
    assert today.sources == {"quantize_rows": "one"}
    Golden(today.sources, {key: today.kernels[key] | {"registers": 1}}).save(nvrtc.name)
    count, failures = update("two")
    assert (count, failures) == (
        1,
        [f"{key}: registers is {today.kernels[key]['registers']}, accepted 1"],
    )
    assert Golden.load(nvrtc.name).sources == {"quantize_rows": "one"}
    assert update("two", accept=True) == (1, [])
    assert Golden.load(nvrtc.name) == Golden({"quantize_rows": "two"}, today.kernels)


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
