# SPDX-License-Identifier: Apache-2.0
"""What docs/models.md promises of a row's bits among other rows and in other shapes."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import E4M3, E5M2, GemmCase

import jax_fp8gemm as fp8
from jax_fp8gemm import testing
from jax_fp8gemm._src.native import calls, gemm_problem

KERNELS = ["sim", pytest.param("cuda", marks=pytest.mark.hopper)]
M, N, K = 20, 128, 1024
SMS = 132
BF16, F16, F32 = jnp.bfloat16, jnp.float16, jnp.float32


def cancelling(m=M):
    """Returns operands whose first and last blocks cancel, so that the order of additions shows."""
    lhs, rhs = cases.gemm_operands(GemmCase("", m, N, K))
    values = lhs.values.at[:, -128:].set(-lhs.values[:, :128])
    scales = lhs.scales.at[:, 0].mul(2**10)
    columns = rhs.values.at[:, -128:].set(rhs.values[:, :128])
    return (
        fp8.BlockScaled(values, scales.at[:, -1].set(scales[:, 0]), lhs.block),
        fp8.BlockScaled(columns, rhs.scales.at[:, -1].set(rhs.scales[:, 0]), rhs.block),
    )


def bits(x):
    return np.asarray(x).tobytes()


@pytest.mark.parametrize("numerics", ["exact", "hopper"])
def test_of_all_fields_of_a_configuration_split_k_alone_changes_bits(numerics, simulator_library):
    operands = jax.tree.leaves(cancelling())
    problem = gemm_problem.problem_of(
        "dense",
        operands,
        rhs_block=(128, 128),
        result_dtype=np.dtype(BF16),
        accumulate=False,
        num_groups=1,
    )
    tiles = {}  # the best configuration of each height of tile
    for p in fp8.plan(M, N, K, num_sms=SMS):
        tiles.setdefault((p["split_k"], p["block_m"]), p["config"])
    results = {}
    with testing.simulator(numerics=numerics):
        for (split_k, *_), config in tiles.items():
            out = calls.matmul(problem, operands, num_sms=None, backend="sim", config=config)
            results.setdefault(split_k, set()).add(bits(out))
    assert set(results) == {1, 2, 4, 8}
    assert all(len(each) == 1 for each in results.values())
    assert results[1] == results[8]  # parts of one block each are added as blocks are
    assert results[1] != results[2] != results[4] != results[1]


VARIANTS = {
    "bfloat16": {},
    "float16": {"preferred_element_type": F16},
    "float32": {"preferred_element_type": F32},
    "accumulate": {"accumulate": True},
    "rhs rows": {"rhs_block": (1, 128)},
    "lhs e5m2": {"lhs_dtype": E5M2},
    "rhs e5m2": {"lhs_dtype": E4M3, "rhs_dtype": E5M2},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_which_products_split_k(name, extension):
    found = {p["split_k"] for p in fp8.plan(M, N, K, num_sms=SMS, **VARIANTS[name])}
    assert found == ({1, 2, 4, 8} if name == "bfloat16" else {1})


@pytest.mark.parametrize("kind", ["ragged", "contiguous", "masked", "k_grouped"])
def test_no_product_of_groups_splits_k(kind, extension):
    planned = fp8.plan(M, N, K, kind=kind, num_groups=1, num_sms=SMS)
    assert {p["split_k"] for p in planned} == {1}


def one_group(lhs, rhs, implementation):
    stack = jax.tree.map(lambda x: x[None], rhs)
    return fp8.grouped_gemm(lhs, stack, jnp.asarray([lhs.shape[0]]), implementation=implementation)


def in_float32(lhs, rhs, implementation):
    return fp8.gemm(lhs, rhs, preferred_element_type=F32, implementation=implementation)


def layer(lhs, rhs, implementation):
    """A layer, which quantizes its rows itself."""
    x = lhs.dequantize()
    return fp8.dot(x, rhs, preferred_element_type=F32, implementation=implementation)


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("product", [one_group, in_float32, layer])
def test_rows_have_the_same_bits_for_every_m(product, implementation, simulator_library):
    lhs, rhs = cancelling(200)
    want = np.asarray(product(lhs, rhs, implementation))
    for first, last in ((0, 1), (7, 23), (100, 200)):
        part = jax.tree.map(lambda x: x[first:last], lhs)  # noqa: B023
        assert bits(product(part, rhs, implementation)) == want[first:last].tobytes()


@pytest.mark.parametrize("implementation", KERNELS)
def test_a_float32_result_rounded_is_what_one_group_gives(implementation, simulator_library):
    operands = cancelling()
    rounded = in_float32(*operands, implementation).astype(BF16)
    assert bits(rounded) == bits(one_group(*operands, implementation))


@pytest.mark.parametrize("implementation", ["xla", *KERNELS])
def test_quantized_rows_have_the_same_bits_for_every_number_of_rows(
    implementation, simulator_library
):
    x = cases.normal((200, 300), 0)
    want = fp8.quantize(x, implementation=implementation)
    for first, last in ((0, 1), (7, 23), (100, 200)):
        part = fp8.quantize(x[first:last], implementation=implementation)
        assert bits(part.values) == bits(want.values[first:last])
        assert bits(part.scales) == bits(want.scales[first:last])
