# SPDX-License-Identifier: Apache-2.0
"""What is refused for its size, and what a cap on the SMs does to the choice of a kernel."""

import jax
import jax.numpy as jnp
import pytest

import jax_fp8gemm as fp8
from jax_fp8gemm import _checks, _config

FP8 = jnp.float8_e4m3fn


def test_more_rows_than_a_tensor_map_can_address_are_refused_while_tracing():
    rows = _checks.MAX_EXTENT + 1
    operands = [
        jax.ShapeDtypeStruct((rows, 128), FP8),
        jax.ShapeDtypeStruct((rows, 1), jnp.float32),
        jax.ShapeDtypeStruct((8, 128), FP8),
        jax.ShapeDtypeStruct((1, 1), jnp.float32),
    ]
    with pytest.raises(ValueError, match=f"gemm: lhs .* at most {_checks.MAX_EXTENT}"):
        jax.eval_shape(lambda a, sa, b, sb: fp8.gemm((a, sa), (b, sb)), *operands)


@pytest.mark.usefixtures("extension")
def test_plan_refuses_what_gemm_refuses():
    with pytest.raises(ValueError, match="m must be an int from 1 to"):
        fp8.plan(_checks.MAX_EXTENT + 1, 8, 8)
    assert fp8.plan(_checks.MAX_EXTENT, 8, 8)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("num_sms", [1, 2, 16, 100, 132])
@pytest.mark.parametrize("m, n, k", [(1, 576, 16384), (1, 4096, 16384), (64, 2112, 7168)])
def test_split_k_stays_within_the_sms_it_may_use(m, n, k, num_sms):
    split = [c for c in fp8.plan(m, n, k, num_sms=num_sms) if c["split_k"] > 1]
    assert all(c["tiles"] <= num_sms for c in split)
    assert split or num_sms < 132


def test_no_home_keeps_kernels_in_memory(monkeypatch):
    for name in ("JAX_FP8GEMM_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", no_home)
    assert _config.cache_dir() is None
