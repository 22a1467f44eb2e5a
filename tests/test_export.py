# SPDX-License-Identifier: Apache-2.0
"""jax.export: programs written once for CUDA and CPU, read and called; see _devices.py too."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import cases
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import serialize_executable

import jax_fp8gemm as fp8
from jax_fp8gemm._src.native import sim_library

T, K, N, G = 48, 256, 136, 3
x, w = cases.normal((T, K), seed=0), cases.normal((K, N), seed=1)
experts = cases.normal((G, K, N), seed=2)
sizes = jnp.asarray([20, 0, 28], jnp.int32)
quantized = fp8.quantize(x), fp8.quantize(w.T, (128, 128))


def step(product):
    return jax.value_and_grad(lambda x, w, *rest: (product(x, w, *rest) ** 2).sum(), (0, 1))


PROGRAMS = {
    "dot": (step(fp8.dot), (x, w)),
    "ragged_dot": (step(fp8.ragged_dot), (x, experts, sizes)),
    "vmap of dot": (jax.vmap(fp8.dot, (None, 0)), (x, experts)),
}


def round_trip(f, arguments, platforms):
    exported = jax.export.export(
        jax.jit(f), platforms=platforms, disabled_checks=fp8.export_checks()
    )(*arguments)
    return jax.export.deserialize(bytearray(exported.serialize()))


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", PROGRAMS)
def test_round_trip_for_both_platforms(name):
    f, arguments = PROGRAMS[name]
    read = round_trip(f, arguments, ["cuda", "cpu"])
    assert set(read.platforms) == {"cuda", "cpu"}
    targets = set(re.findall(r"custom_call @(jax_fp8gemm[\w.]*)", read.mlir_module()))
    assert targets == {"jax_fp8gemm.gemm.v1", "jax_fp8gemm.quantize.v1"}
    jax.tree.map(np.testing.assert_array_equal, read.call(*arguments), jax.jit(f)(*arguments))


@pytest.mark.usefixtures("extension")
def test_block_scaled_arguments_are_exported_as_their_leaves():
    lhs, rhs = quantized
    f = lambda a, s, b, t: fp8.gemm((a, s), (b, t))  # noqa: E731
    arguments = (*jax.tree.leaves(lhs), *jax.tree.leaves(rhs))
    read = round_trip(f, arguments, ["cuda", "cpu"])
    np.testing.assert_array_equal(read.call(*arguments), fp8.gemm(lhs, rhs))


def test_block_scaled_arguments_are_exported_as_such():
    exported = jax.export.export(jax.jit(fp8.gemm), platforms=["cpu"])(*quantized)
    read = jax.export.deserialize(bytearray(exported.serialize()))
    assert read.in_tree == jax.tree.structure((quantized, {}))
    np.testing.assert_array_equal(read.call(*quantized), fp8.gemm(*quantized))


SYMBOLIC = {
    "gradients of dot": (step(fp8.dot), w),
    "gemm": (lambda x, w: fp8.gemm(fp8.quantize(x), w), quantized[1]),
    "quantize_transposed": (lambda x, _: fp8.quantize_transposed(x), w),
    "quantize_k_grouped": (lambda x, _: fp8.quantize_k_grouped(x, sizes), w),
}


def symbolic(*extents):
    return jax.ShapeDtypeStruct(jax.export.symbolic_shape(",".join(extents)), jnp.float32)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SYMBOLIC)
def test_extents_may_be_symbols_in_plain_jax(name):
    f, operand = SYMBOLIC[name]
    exported = jax.export.export(jax.jit(f), platforms=["cpu"])(symbolic("m", str(K)), operand)
    for rows in (x, x[:5]):
        jax.tree.map(np.testing.assert_array_equal, exported.call(rows, operand), f(rows, operand))


@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbols_are_refused_for_kernels(name):
    f, operand = SYMBOLIC[name]
    with pytest.raises(NotImplementedError, match=r"must be numbers, got \(m, 256\)"):
        jax.export.export(jax.jit(f), platforms=["cuda"])(symbolic("m", str(K)), operand)


def test_symbols_are_refused_for_groups():
    def product(x):
        return fp8.grouped_gemm(
            fp8.quantize(x), fp8.quantize(experts.swapaxes(1, 2), (128, 128)), sizes
        )

    with pytest.raises(
        NotImplementedError, match=r"grouped_gemm: .* must be numbers, got \(m, 256"
    ):
        jax.export.export(jax.jit(product))(symbolic("m", str(K)))


@pytest.mark.usefixtures("extension")
def test_export_needs_the_checks():
    """Shows that the checks above are what lets the custom calls through."""
    with pytest.raises(ValueError, match="jax_fp8gemm.gemm.v1"):
        jax.export.export(jax.jit(fp8.dot), platforms=["cuda"])(x, w)


@pytest.fixture(scope="module")
def program_folder(tmp_path_factory):
    """A folder with a program for the simulator: exported, compiled, its operands, its result."""
    if missing := sim_library.missing():
        pytest.skip(f"needs the simulator: {missing}")
    folder = tmp_path_factory.mktemp("programs")
    product = jax.jit(lambda x, w: fp8.dot(x, w, implementation="sim"))
    operands = x[:16, :128], w[:128, :32]
    exported = jax.export.export(product, disabled_checks=fp8.export_checks())(*operands)
    compiled = serialize_executable.serialize(product.lower(*operands).compile())
    arrays = jax.tree.map(np.asarray, (operands, product(*operands)))
    (folder / "exported").write_bytes(exported.serialize())
    (folder / "compiled").write_bytes(pickle.dumps(compiled))
    (folder / "arrays").write_bytes(pickle.dumps(arrays))
    return folder


def run_loaded(folder, *options):
    program = Path(__file__).with_name("_loaded_program.py")
    command = [sys.executable, str(program), str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_process_that_only_imports_the_package_runs_both(program_folder):
    done = run_loaded(program_folder)
    assert done.returncode == 0, done.stderr


def test_a_process_without_the_package_does_not(program_folder):
    """Shows that the import is what registers the custom calls."""
    done = run_loaded(program_folder, "without")
    assert done.returncode != 0
    assert "jax_fp8gemm.quantize.v1" in done.stderr


def test_import_says_nothing_where_the_extension_does_not_load(tmp_path):
    """Plain JAX works there; the function that registers says why it cannot."""
    program = (
        "import sys; sys.modules['jax_fp8gemm._core'] = None\n"
        "import jax.numpy as jnp, jax_fp8gemm as fp8\n"
        "fp8.dot(jnp.ones((4, 128)), jnp.ones((128, 4)), implementation='xla')\n"
        "fp8.register_targets()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r"ImportError|ModuleNotFoundError", done.stderr)
    assert "register_targets" in done.stderr
