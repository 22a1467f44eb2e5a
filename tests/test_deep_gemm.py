# SPDX-License-Identifier: Apache-2.0
"""DeepGEMM's names give what the functions under them give."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_fp8gemm as fp8
from jax_fp8gemm import deep_gemm
from jax_fp8gemm.testing import assert_gemm_close, assert_grouped_gemm_close


@pytest.fixture
def reset_num_sms():
    yield
    deep_gemm.set_num_sms(0)


def test_gemm(extension, reset_num_sms):
    lhs, rhs = cases.gemm_operands(cases.GemmCase("", 64, 136, 256))
    operands = (lhs.values, lhs.scales), (rhs.values, rhs.scales)
    out = deep_gemm.fp8_gemm_nt(*operands)
    assert out.dtype == jnp.bfloat16
    assert_gemm_close(out, lhs, rhs, implementation=None)
    deep_gemm.set_num_sms(2)
    assert_gemm_close(deep_gemm.fp8_gemm_nt(*operands), lhs, rhs, implementation=None)


def test_gemm_adds_to_c(extension):
    lhs, rhs = cases.gemm_operands(cases.GemmCase("", 64, 136, 256))
    c = cases.normal((64, 136), seed=3)
    out = deep_gemm.fp8_gemm_nt(lhs, rhs, c)
    assert_gemm_close(out, lhs, rhs, c, implementation=None)


@pytest.mark.parametrize("kind", ["contiguous", "masked"])
def test_groups_of_rows(extension, reset_num_sms, kind):
    case = cases.GroupedCase("", (3, 0, 70), 72, 200)
    lhs, rhs, groups = getattr(cases, f"{kind}_operands")(case)
    product = getattr(deep_gemm, f"m_grouped_fp8_gemm_nt_{kind}")
    deep_gemm.set_num_sms(2)
    expected = (64,) if kind == "masked" else ()  # of rows; a hint
    out = product((lhs.values, lhs.scales), (rhs.values, rhs.scales), groups, *expected)
    assert out.dtype == jnp.bfloat16
    assert_grouped_gemm_close(out, lhs, rhs, groups, kind=kind, implementation=None)


def test_k_grouped():
    """Tokens come first, as in DeepGEMM."""
    sizes = jnp.asarray([128, 0, 256])
    lhs, rhs = (fp8.quantize_transposed(cases.normal((384, n), n)) for n in (72, 40))
    c = cases.normal((3, 72, 40), seed=3)
    out = deep_gemm.k_grouped_fp8_gemm_tn_contiguous(
        *((x.values.T, x.scales.T) for x in (lhs, rhs)), sizes, c
    )
    assert_grouped_gemm_close(out, lhs, rhs, sizes, c, kind="k_grouped", implementation=None)


def test_k_grouped_of_flattened_groups(extension):
    """Each group's matrix lies behind the one before, as DeepGEMM has them on Hopper."""
    sizes = [128, 0, 256]
    lhs, rhs = (fp8.quantize_transposed(cases.normal((384, n), n)) for n in (72, 40))

    def flattened(x):
        parts = np.split(np.asarray(x.values), np.cumsum(sizes)[:-1], axis=1)
        return jnp.concatenate([part.ravel() for part in parts]), x.scales

    c = cases.normal((3, 72, 40), seed=3)
    product = jax.jit(deep_gemm.k_grouped_fp8_gemm_nt_contiguous)
    out = product(flattened(lhs), flattened(rhs), jnp.asarray(sizes), c)
    ks = jnp.asarray(sizes)
    assert_grouped_gemm_close(out, lhs, rhs, ks, c, kind="k_grouped", implementation=None)
    # A size below 0 counts as 0, and what passes T is cut off.
    clipped = product(flattened(lhs), flattened(rhs), jnp.asarray([128, -128, 2**31 - 1]), c)
    np.testing.assert_array_equal(clipped, out)
    with pytest.raises(ValueError, match=r"lhs must have values of shape \(M \* T,\)"):
        product((lhs.values, lhs.scales), flattened(rhs), ks)


def test_names_of_before_are_those_of_today():
    for before, today in (
        ("gemm_fp8_fp8_bf16_nt", "fp8_gemm_nt"),
        ("m_grouped_gemm_fp8_fp8_bf16_nt_contiguous", "m_grouped_fp8_gemm_nt_contiguous"),
        ("m_grouped_gemm_fp8_fp8_bf16_nt_masked", "m_grouped_fp8_gemm_nt_masked"),
    ):
        assert getattr(deep_gemm, before) is getattr(deep_gemm, today)


def test_num_sms(reset_num_sms, monkeypatch):
    assert deep_gemm.get_num_sms() == 0
    seen = []
    monkeypatch.setattr(deep_gemm, "gemm", lambda *_, num_sms, **__: seen.append(num_sms))
    for value in (0, 1, 100, np.int32(7)):
        deep_gemm.set_num_sms(value)
        deep_gemm.fp8_gemm_nt(None, None)
        assert deep_gemm.get_num_sms() == value
    assert seen == [None, 1, 100, 7]


@pytest.mark.parametrize(
    ("x", "y", "want"), [(0, 128, 0), (1, 128, 1), (128, 128, 1), (129, 128, 2)]
)
def test_ceil_div(x, y, want):
    assert deep_gemm.ceil_div(x, y) == want


@pytest.mark.parametrize(
    ("x", "size", "want"), [(1, 4, 4), (4, 4, 4), (5, 4, 8), (3, 1, 16), (9, 2, 16)]
)
def test_tma_aligned_size(x, size, want):
    assert deep_gemm.get_tma_aligned_size(x, size) == want


def test_scales_keep_their_logical_shape():
    for shape in ((5, 3), (2, 5, 3)):
        x = jnp.ones(shape)
        assert deep_gemm.get_col_major_tma_aligned_tensor(x) is x


def test_contiguous_alignment():
    assert deep_gemm.get_m_alignment_for_contiguous_layout() == 128
