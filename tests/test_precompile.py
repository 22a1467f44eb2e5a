# SPDX-License-Identifier: Apache-2.0
"""precompile finds the kernels of a traced program, of every kind, and compiles each once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jax_fp8gemm as fp8
from jax_fp8gemm._src.native import environment, gemm_problem, ranking
from jax_fp8gemm._src.native import precompile as precompile_lib

E4M3 = jnp.float8_e4m3fn
SIZES = jax.ShapeDtypeStruct((4,), jnp.int32)


def blocks(*shape: int, block=(128, 128)) -> fp8.BlockScaled:
    """Returns the shapes of a block-scaled array."""
    rows, columns = (-(-extent // size) for extent, size in zip(shape[-2:], block, strict=True))
    values = jax.ShapeDtypeStruct(shape, E4M3)
    scales = jax.ShapeDtypeStruct((*shape[:-2], rows, columns), jnp.float32)
    return fp8.BlockScaled(values, scales, block)


def rows(*shape: int) -> fp8.BlockScaled:
    """Returns the shapes of an array with 1x128 scales."""
    return blocks(*shape, block=(1, 128))


@pytest.fixture
def compiled(extension, monkeypatch):
    """Records what would be compiled instead of compiling it."""
    jax.clear_caches()  # what was traced in another environment
    keys = []

    class Core:
        nvrtc_version = staticmethod(lambda: (13, 0))

        def kernel_image(self, key):
            keys.append(key)
            return bytes(1000)

        def __getattr__(self, name):
            return getattr(real, name)

    real = extension.core()
    core = Core()
    monkeypatch.setattr(extension, "core", lambda: core)
    return keys


PROGRAMS = {
    "64x256x384": lambda: (fp8.gemm, rows(64, 384), blocks(256, 384)),
    "64x256x384:result=f32:rows:accumulate": lambda: (
        lambda x, w, c: fp8.gemm(x, w, accumulator=c, preferred_element_type=jnp.float32),
        rows(64, 384),
        rows(256, 384),
        jax.ShapeDtypeStruct((64, 256), jnp.float32),
    ),
    "ragged:300x256x384:groups=4": lambda: (
        fp8.grouped_gemm,
        rows(300, 384),
        blocks(4, 256, 384),
        SIZES,
    ),
    "contiguous:512x256x384:groups=4": lambda: (
        fp8.grouped_gemm_contiguous,
        rows(512, 384),
        blocks(4, 256, 384),
        jax.ShapeDtypeStruct((512,), jnp.int32),
    ),
    "masked:64x256x384:groups=4:expected=8": lambda: (
        lambda x, w, s: fp8.grouped_gemm_masked(x, w, s, expected_m=8),
        rows(4, 64, 384),
        blocks(4, 256, 384),
        SIZES,
    ),
    "k_grouped:72x136x512:groups=4": lambda: (
        fp8.k_grouped_gemm,
        rows(72, 512),
        rows(136, 512),
        SIZES,
    ),
}


@pytest.mark.parametrize("word", PROGRAMS)
def test_kernel_of_every_kind(compiled, extension, word):
    function, *arguments = PROGRAMS[word]()
    keys = fp8.precompile(jax.jit(function).trace(*arguments), num_sms=132)
    problem = gemm_problem.parse(word)
    best = ranking.rank(problem, backend="cuda")[0]["config"]
    assert keys == compiled == [best]


def _layers(x, w):
    """A loop, a conditional and an inner function: kernels in regions of the program."""
    y = fp8.gemm(fp8.quantize(x), w)

    def step(carry, _):
        return fp8.gemm(fp8.quantize(carry), w).astype(jnp.bfloat16), None

    y, _ = jax.lax.scan(step, y, None, length=3)
    inner = jax.jit(lambda y: fp8.gemm(fp8.quantize(y[:16]), w))
    return jax.lax.cond(y[0, 0] > 0, inner, lambda y: y[:16] * 2, y)


def test_kernels_in_loops_branches_and_functions(compiled):
    traced = jax.jit(_layers).trace(jax.ShapeDtypeStruct((64, 256), jnp.bfloat16), blocks(256, 256))
    module = traced.lower(lowering_platforms=("cuda",)).compiler_ir("stablehlo")
    found = {str(kernel.problem) for kernel in precompile_lib.kernels_of(module.operation)}
    assert found == {"64x256x256", "16x256x256"}
    assert len(fp8.precompile(traced)) == len(set(compiled)) == len(compiled)


def test_backward_pass_has_its_products(compiled):
    def loss(x, w):
        return fp8.dot(x, w).astype(jnp.float32).sum()

    array = jax.ShapeDtypeStruct
    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(
        array((128, 256), jnp.bfloat16), array((256, 384), jnp.bfloat16)
    )
    module = traced.lower(lowering_platforms=("cuda",)).compiler_ir("stablehlo")
    found = {kernel.problem[:3] for kernel in precompile_lib.kernels_of(module.operation)}
    assert {(128, 256, 384), (256, 384, 128)} == found  # dx, dw; nothing needs the product itself


def test_program_without_kernels(compiled):
    assert fp8.precompile(jax.jit(lambda x: x + 1).trace(jnp.ones(3))) == []


def test_chosen_for_other_sms_and_with_pdl(compiled, extension, monkeypatch):
    monkeypatch.setenv(environment.PDL, "1")
    function, *arguments = PROGRAMS["64x256x384"]()
    (key,) = fp8.precompile(jax.jit(function).trace(*arguments), num_sms=8)
    problem = gemm_problem.parse("64x256x384", num_sms=8)
    assert key == ranking.rank(problem, backend="cuda")[0]["config"] + ".pdl"


def test_tuned_table_of_the_named_gpu(compiled, extension, monkeypatch):
    seen = []

    def rank(problem, *, backend, gpu):
        seen.append(gpu)
        return [{"config": "tuned"}]

    monkeypatch.setattr(ranking, "rank", rank)
    function, *arguments = PROGRAMS["64x256x384"]()
    assert fp8.precompile(jax.jit(function).trace(*arguments), gpu="NVIDIA H200") == ["tuned"]
    assert seen == ["NVIDIA H200"]


def test_kernels_are_logged(compiled, caplog):
    function, *arguments = PROGRAMS["64x256x384"]()
    with caplog.at_level("INFO", logger="jax_fp8gemm"):
        (key,) = fp8.precompile(jax.jit(function).trace(*arguments))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [f"compiled {key}"]


def test_divided_by_an_automatic_mesh_is_told(compiled):
    devices = np.array(jax.devices() * 2)[:2]
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices, as tests/_devices.py gives")
    sharding = NamedSharding(Mesh(devices, "x"), PartitionSpec("x"))
    function, lhs, rhs = PROGRAMS["64x256x384"]()
    traced = jax.jit(function, in_shardings=(sharding, None)).trace(lhs, rhs)
    with pytest.warns(RuntimeWarning, match="an automatic mesh shards 1 operations"):
        assert fp8.precompile(traced) == []


def test_undivided_call_is_told(compiled):
    class Attribute:
        value = "CustomSPMDPartitioning"

    class Operation:
        attributes = {"call_target_name": Attribute()}
        regions = ()

    with pytest.warns(RuntimeWarning, match="an automatic mesh shards 1 operations"):
        assert precompile_lib.kernels_of(Operation()) == []


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"traced": jnp.sin}, TypeError, "traced must be jax.jit"),
        ({"num_sms": 0}, ValueError, "num_sms"),
        ({"num_sms": 1.5}, TypeError, "num_sms"),
        ({"jobs": 0}, ValueError, "jobs"),
        ({"jobs": "2"}, TypeError, "jobs"),
    ],
)
def test_bad_arguments(compiled, changes, error, text):
    arguments = {"traced": jax.jit(jnp.sin).trace(jnp.ones(3))} | changes
    with pytest.raises(error, match=f"precompile: {text}"):
        fp8.precompile(**arguments)


def test_really_compiled(extension, tmp_path, monkeypatch):
    core = extension.core()
    try:
        core.nvrtc_version()
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    core.clear_memory_cache()  # what an earlier test compiled would not be written again
    core.set_cache_directory(str(tmp_path))
    try:
        function, *arguments = PROGRAMS["64x256x384"]()
        keys = fp8.precompile(jax.jit(function).trace(*arguments))
        assert [label for _, label, _ in core.list_disk_cache()] == keys
    finally:
        extension.keep_kernels(core)
