# SPDX-License-Identifier: Apache-2.0
"""What earlier versions wrote: pickles and exported programs, which must keep their meaning.

The files of tests/frozen were written at commit 361bd81, before modules moved. In the programs only
the folders of source locations were replaced since, by names of the same length.
"""

import pickle
from pathlib import Path

import cases
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jax_fp8gemm as fp8

FROZEN = Path(__file__).parent / "frozen"
K, N, G = 256, 136, 3
x, w, experts = (cases.normal(s, seed=i) for i, s in enumerate([(24, K), (K, N), (G, N, K)]))
sizes = jnp.asarray([9, 0, 13], jnp.int32)
weight = fp8.quantize(w.T, (128, 128), implementation="xla")


def deserialized(name):
    return jax.export.deserialize(bytearray((FROZEN / name).read_bytes()))


@pytest.mark.usefixtures("simulator_library")
def test_an_exported_program_of_custom_calls_still_runs(extension):
    """On the CPU, where the simulator's handlers take the calls."""
    program = deserialized("program_361bd81.bin")
    extension.core()
    got = program.call(x, w, experts, sizes)
    rows = fp8.quantize(x, implementation="xla")
    transposed = fp8.quantize_transposed(x, implementation="xla")
    groups = fp8.quantize_k_grouped(x, sizes, implementation="xla")
    weights = fp8.quantize(experts, (128, 128), implementation="xla")
    options = {"implementation": "sim"}
    f32 = jnp.float32
    want = {
        "gemm": fp8.gemm(rows, weight, **options),
        "grouped_gemm": fp8.grouped_gemm(rows, weights, sizes, **options),
        "k_grouped_gemm": fp8.k_grouped_gemm(groups, groups, sizes, **options),
        "dw": fp8.gemm(transposed, transposed, preferred_element_type=f32, **options),
    }
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


def test_an_exported_program_takes_block_scaled_arguments():
    layer = deserialized("layer_361bd81.bin")
    assert set(layer.platforms) == {"cpu", "cuda"}
    assert layer.in_tree == jax.tree.structure(((weight, x), {}))
    want = fp8.gemm(fp8.quantize(x, implementation="xla"), weight, implementation="xla")
    np.testing.assert_array_equal(layer.call(weight, x), want)


def test_a_pickle_is_read():
    read = pickle.loads((FROZEN / "block_scaled_361bd81.pickle").read_bytes())
    assert type(read) is fp8.BlockScaled and read.block == (128, 128)
    np.testing.assert_array_equal(
        np.asarray(read.values).view("u1"), np.asarray(weight.values[:4]).view("u1")
    )
    np.testing.assert_array_equal(read.scales, weight.scales[:1])


def test_pickles_name_public_places_only():
    written = pickle.dumps(fp8.BlockScaled(*map(np.asarray, jax.tree.leaves(weight)), (128, 128)))
    assert b"jax_fp8gemm" in written and b"_src" not in written
    assert type(pickle.loads(written)) is fp8.BlockScaled
