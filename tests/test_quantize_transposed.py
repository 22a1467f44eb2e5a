# SPDX-License-Identifier: Apache-2.0
"""Transposed quantizers: values, layout of groups, padding, and sizes that make no sense."""

import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import E4M3, E5M2, GROUPED_CASES, MANY_GROUPS_CASES

import jax_fp8gemm as fp8


def assert_same(got, want):
    assert got.block == want.block == (1, 128)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("scale_format", ["float32", "pow2"])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("shape", [(128, 64), (200, 33), (1, 5), (2, 3, 130, 40)], ids=str)
def test_transposed_is_quantize_of_the_transpose(shape, dtype, scale_format):
    x = cases.normal(shape, seed=0)
    options = {"dtype": dtype, "scale_format": scale_format}
    got = fp8.quantize_transposed(x, **options)
    assert_same(got, fp8.quantize(jnp.swapaxes(x, -1, -2), **options))


def groups_one_by_one(x, sizes, width, **options):
    """What `quantize_k_grouped` must give: each group quantized by itself."""
    columns = np.zeros((x.shape[1], width), np.float32)
    row = column = 0
    for size in sizes:
        columns[:, column : column + size] = np.asarray(x[row : row + size], np.float32).T
        row, column = row + size, column + -(-size // 128) * 128
    return fp8.quantize(jnp.asarray(columns), **options)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", GROUPED_CASES + MANY_GROUPS_CASES, ids=str)
def test_groups_are_quantized_one_by_one(case):
    x = cases.normal((case.num_rows, 24), seed=0)
    x = x.at[sum(case.sizes) :].set(jnp.nan)
    got = fp8.quantize_k_grouped(x, case.group_sizes)
    width = (case.num_rows + 127 * len(case.sizes)) // 128 * 128
    assert_same(got, groups_one_by_one(x, case.sizes, width))


@pytest.mark.parametrize("x_dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes_and_scale_format(x_dtype):
    x = cases.normal((70, 24), seed=0, dtype=x_dtype)
    options = {"dtype": E5M2, "scale_format": "pow2"}
    got = fp8.quantize_k_grouped(x, jnp.asarray([3, 60], jnp.int32), **options)
    assert_same(got, groups_one_by_one(x, (3, 60), 256, **options))


def test_the_width_is_enough_for_the_worst_sizes():
    for num_groups in (1, 3):
        sizes = jnp.asarray([1] * (num_groups - 1) + [129], jnp.int32)
        x = jnp.ones((int(sizes.sum()), 8))
        got = fp8.quantize_k_grouped(x, sizes).dequantize()
        assert float(got.sum()) == x.size


def test_nan_stays_in_its_block():
    x = cases.normal((300, 8), seed=0).at[10, 3].set(jnp.nan)
    got = fp8.quantize_k_grouped(x, jnp.asarray([5, 290], jnp.int32)).dequantize()
    is_nan = np.zeros(got.shape, bool)
    is_nan[3, 128 + 5] = True  # with its block, whose scale it makes NaN
    is_nan[3, 128:256] = True
    np.testing.assert_array_equal(np.isnan(got), is_nan)


@pytest.mark.parametrize(
    ("sizes", "clamped"),
    [
        ((-4, 30, 30), (0, 30, 30)),
        ((30, 2**31 - 1, 9), (30, 40, 0)),
        ((2**31 - 1,) * 3, (70, 0, 0)),
    ],
)
def test_sizes_that_make_no_sense_are_clamped(sizes, clamped):
    x = cases.normal((70, 8), seed=0)
    got, want = (fp8.quantize_k_grouped(x, jnp.asarray(s, jnp.int32)) for s in (sizes, clamped))
    assert_same(got, want)


def test_nothing_to_quantize():
    for shape, groups in (((0, 8), 2), ((0, 8), 0), ((70, 8), 0), ((70, 0), 2)):
        got = fp8.quantize_k_grouped(jnp.zeros(shape), jnp.zeros(groups, jnp.int32))
        assert got.shape == (shape[1], (shape[0] + 127 * groups) // 128 * 128)
        assert not np.asarray(got.values, np.float32).any()


def test_vmap():
    x = cases.normal((2, 70, 8), seed=0)
    sizes = jnp.asarray([[3, 60], [60, 3]], jnp.int32)
    got = jax.vmap(fp8.quantize_k_grouped)(x, sizes)
    for i in range(2):
        assert_same(jax.tree.map(lambda a, i=i: a[i], got), fp8.quantize_k_grouped(x[i], sizes[i]))


def test_no_sort_and_no_wide_temporary():
    """What a program for a device holds: one gather of the rows, and loops over sizes only."""
    x, sizes = (
        jax.ShapeDtypeStruct((4096, 512), jnp.bfloat16),
        jax.ShapeDtypeStruct((64,), jnp.int32),
    )
    text = jax.jit(fp8.quantize_k_grouped).lower(x, sizes).as_text()
    assert "stablehlo.sort" not in text
    wide = {m for m in re.findall(r"tensor<([0-9x]+)x\w+>", text) if m.count("x") >= 1}
    most = max(np.prod([int(d) for d in m.split("x")]) for m in wide)
    assert most == (4096 + 127 * 64) // 128 * 128 * 512
