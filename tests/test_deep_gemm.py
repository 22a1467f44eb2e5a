# SPDX-License-Identifier: Apache-2.0
"""DeepGEMM's names give what the functions under them give."""

import cases
import jax.numpy as jnp
import numpy as np
import pytest

from jax_fp8gemm import deep_gemm
from jax_fp8gemm.testing import assert_gemm_close


@pytest.fixture
def reset_num_sms():
    yield
    deep_gemm.set_num_sms(0)


def test_gemm(extension, reset_num_sms):
    lhs, rhs = cases.gemm_operands(cases.GemmCase("", 64, 136, 256))
    operands = (lhs.values, lhs.scales), (rhs.values, rhs.scales)
    out = deep_gemm.gemm_fp8_fp8_bf16_nt(*operands)
    assert out.dtype == jnp.bfloat16
    assert_gemm_close(out, lhs, rhs, implementation=None)
    deep_gemm.set_num_sms(2)
    assert_gemm_close(deep_gemm.gemm_fp8_fp8_bf16_nt(*operands), lhs, rhs, implementation=None)


def test_num_sms(reset_num_sms, monkeypatch):
    assert deep_gemm.get_num_sms() == 0
    seen = []
    monkeypatch.setattr(deep_gemm, "gemm", lambda lhs, rhs, num_sms: seen.append(num_sms))
    for value in (0, 1, 100, np.int32(7)):
        deep_gemm.set_num_sms(value)
        deep_gemm.gemm_fp8_fp8_bf16_nt(None, None)
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
