# SPDX-License-Identifier: Apache-2.0
"""Every kernel the heuristics can choose, on shapes with tails and odd numbers of tiles."""

from concurrent.futures import ThreadPoolExecutor

import cases
import jax
import jax.numpy as jnp
import pytest
from _dense import (
    assert_close,
    dense_configs,
    device_for,
    operands_for,
    run_poisoned,
    with_config,
)
from cases import GemmCase

CONFIGS = dense_configs()
# Few SMs, so that each CTA works through several tiles; an odd number cannot be all clusters.
FEW_SMS = 5
# Checked with the simulator too, so that this file is known to work before a GPU sees it:
# scaling, rows, columns, CTAs of a cluster along M, type of rhs, type of the result, accumulator.
SIMULATED = (
    ("1d2d", 16, 32, 1, "float8_e4m3fn", "bfloat16", False),
    ("1d2d", 128, 128, 2, "float8_e4m3fn", "bfloat16", False),
    ("1d2d", 64, 128, 1, "float8_e5m2", "float32", True),
    ("1d1d", None, None, None, "float8_e4m3fn", "float32", False),
)


@pytest.fixture(scope="module")
def compiled():
    """Compiles every candidate, as many at a time as the machine has cores."""
    from jax_fp8gemm._src.native import extension as extension_lib

    keys = [key + flag for key in CONFIGS for flag in ("", ".pdl")]
    with ThreadPoolExecutor() as pool:
        list(pool.map(extension_lib.core().precompile, keys))


def _problem(config: dict) -> GemmCase:
    """Returns three tiles in each dimension, none of them whole at the end, and a long K."""
    m = 2 * config["block_m"] + config["block_m"] // 2 + 1
    n = 2 * config["block_n"] + 8
    return GemmCase("configuration", m, n, 128 * (config["num_stages"] + 2) + 16)


def _check(key: str, implementation: str, num_sms: int | None) -> None:
    config = CONFIGS[key]
    case, dtype = _problem(config), jnp.dtype(config["d_type"])
    lhs, rhs = operands_for(
        case,
        implementation,
        lhs_dtype=jnp.dtype(config["a_type"]),
        rhs_dtype=jnp.dtype(config["b_type"]),
        rhs_block=(1, 128) if config["scaling"] == "1d1d" else (128, 128),
    )
    call = with_config(key, dtype, implementation, num_sms)
    if not config["accumulate"]:
        out = run_poisoned(call, lhs, rhs, dtype)
        assert_close(out, lhs, rhs, implementation=implementation)
        return
    accumulator = cases.normal((case.m, case.n), 3, dtype)
    accumulator = jax.device_put(accumulator, device_for(implementation))
    out = jax.jit(call)(lhs, rhs, accumulator)
    assert_close(out, lhs, rhs, accumulator, implementation=implementation)


@pytest.mark.hopper
@pytest.mark.parametrize("key", CONFIGS)
def test_configuration(extension, compiled, key, monkeypatch):
    monkeypatch.setenv("JAX_FP8GEMM_PDL", "1")
    _check(key, "cuda", FEW_SMS)
    monkeypatch.setenv("JAX_FP8GEMM_PDL", "0")
    _check(key, "cuda", None)


def _matches(config: dict, wanted: tuple) -> bool:
    names = ("scaling", "block_m", "block_n", "cluster_m", "b_type", "d_type", "accumulate")
    pairs = zip(names, wanted, strict=True)
    return all(value is None or config[name] == value for name, value in pairs)


@pytest.mark.parametrize("wanted", SIMULATED, ids=lambda wanted: "-".join(map(str, wanted)))
def test_configuration_simulated(simulated, wanted):
    """One of each, by the same code."""
    keys = [key for key, c in CONFIGS.items() if c["simulated"] and _matches(c, wanted)]
    assert keys
    _check(keys[0], "sim", None)
