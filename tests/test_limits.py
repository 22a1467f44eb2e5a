# SPDX-License-Identifier: Apache-2.0
"""What is refused for its size, and what a cap on the SMs does to the choice of a kernel."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jax_fp8gemm as fp8
from jax_fp8gemm._src.native import environment
from jax_fp8gemm._src.operands import checks

FP8 = jnp.float8_e4m3fn


MOST = checks.MAX_EXTENT
HALF = MOST // 2 + 1  # two of them are too many


def values(*shape):
    """Returns float8 values of a shape with their 1x128 scales, neither of which has memory."""
    scales = (*shape[:-1], -(-shape[-1] // 128))
    return jax.ShapeDtypeStruct(shape, FP8), jax.ShapeDtypeStruct(scales, jnp.float32)


def weights(*shape):
    """Returns the same with 128x128 scales."""
    scales = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    return jax.ShapeDtypeStruct(shape, FP8), jax.ShapeDtypeStruct(scales, jnp.float32)


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def x(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


quantize_blocks = functools.partial(fp8.quantize, block=(128, 128))

# A call whose last operand to be too large is named, and the same with one row or column less.
TOO_LARGE = {
    "gemm_rows": (fp8.gemm, (values(MOST + 1, 128), weights(8, 128)), "lhs"),
    "gemm_columns": (fp8.gemm, (values(8, 128), weights(MOST + 1, 128)), "rhs"),
    "gemm_k": (fp8.gemm, (values(8, MOST + 1), weights(8, MOST + 1)), "lhs"),
    "grouped_rows": (
        fp8.grouped_gemm,
        (values(MOST + 1, 128), weights(2, 8, 128), ints(2)),
        "lhs",
    ),
    "grouped_weights": (
        fp8.grouped_gemm,
        (values(8, 128), weights(2, HALF, 128), ints(2)),
        "rhs",
    ),
    "contiguous_rows": (
        fp8.grouped_gemm_contiguous,
        (values(MOST + 1, 128), weights(2, 8, 128), ints(MOST + 1)),
        "lhs",
    ),
    "contiguous_weights": (
        fp8.grouped_gemm_contiguous,
        (values(8, 128), weights(2, HALF, 128), ints(8)),
        "rhs",
    ),
    "masked_rows": (
        fp8.grouped_gemm_masked,
        (values(2, HALF, 128), weights(2, 8, 128), ints(2)),
        "lhs",
    ),
    "masked_weights": (
        fp8.grouped_gemm_masked,
        (values(2, 8, 128), weights(2, HALF, 128), ints(2)),
        "rhs",
    ),
    "k_grouped_k": (fp8.k_grouped_gemm, (values(8, MOST + 1), values(8, MOST + 1), ints(2)), "lhs"),
    "k_grouped_result": (
        fp8.k_grouped_gemm,
        (values(HALF, 256), values(8, 256), ints(2)),
        "the result",
    ),
    "dot_rows": (fp8.dot, (x(2, HALF, 8), x(8, 8)), "x"),
    "quantize_rows": (fp8.quantize, (x(2, HALF, 8),), "x"),
    "quantize_columns": (fp8.quantize, (x(8, MOST + 1),), "x"),
    "quantize_blocks": (quantize_blocks, (x(2, 8, MOST + 1),), "x"),
    "quantize_transposed": (fp8.quantize_transposed, (x(2, MOST + 1, 8),), "x"),
    "quantize_k_grouped": (fp8.quantize_k_grouped, (x(MOST - 253, 8), ints(2)), "the result"),
}


@pytest.mark.parametrize(("function", "operands", "name"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_more_than_a_tensor_map_can_address_is_refused_while_tracing(function, operands, name):
    where = getattr(function, "func", function).__name__
    with pytest.raises(ValueError, match=f"^{where}: {name} must have at most {MOST} rows"):
        jax.eval_shape(function, *operands)


@pytest.mark.parametrize(
    ("function", "operands"),
    [
        (fp8.gemm, (values(MOST, 128), weights(8, 128))),
        (fp8.grouped_gemm, (values(8, 128), weights(2, HALF - 1, 128), ints(2))),
        (fp8.grouped_gemm_masked, (values(2, HALF - 1, 128), weights(2, 8, 128), ints(2))),
        (fp8.k_grouped_gemm, (values(HALF - 1, 256), values(8, 256), ints(2))),
        (fp8.quantize, (x(2, HALF - 1, 8),)),
        (quantize_blocks, (x(2, MOST, 8),)),
        (fp8.quantize_transposed, (x(2, MOST, 8),)),
        (fp8.quantize_k_grouped, (x(MOST - 254, 8), ints(2))),
    ],
)
def test_the_largest_that_can_be_addressed_is_traced(function, operands):
    assert jax.tree.leaves(jax.eval_shape(function, *operands))


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("m", [1, 16, 33, 64])
@pytest.mark.parametrize("n", [128, 2048, 7168])
def test_no_consumer_is_chosen_for_rows_that_are_not_there(m, n):
    assert fp8.plan(m, n, 128, num_sms=132)[0]["block_m"] <= 64


@pytest.mark.usefixtures("extension")
def test_plan_refuses_what_gemm_refuses():
    with pytest.raises(ValueError, match="m must be an int from 1 to"):
        fp8.plan(checks.MAX_EXTENT + 1, 8, 8)
    assert fp8.plan(checks.MAX_EXTENT, 8, 8)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("num_sms", [1, 2, 16, 100, 132])
@pytest.mark.parametrize("m, n, k", [(1, 576, 16384), (1, 4096, 16384), (64, 2112, 7168)])
def test_split_k_stays_within_the_sms_it_may_use(m, n, k, num_sms):
    split = [c for c in fp8.plan(m, n, k, num_sms=num_sms) if c["split_k"] > 1]
    assert all(c["tiles"] <= num_sms for c in split)
    assert split or num_sms < 132


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("m, n, k", [(1, 576, 7168), (16, 2112, 7168), (128, 2112, 7168)])
def test_split_k_is_chosen_where_tiles_are_fewer_than_sms(m, n, k):
    assert fp8.plan(m, n, k, num_sms=132)[0]["split_k"] > 1
    assert fp8.plan(32 * m + 4096, n, k, num_sms=132)[0]["split_k"] == 1


def test_no_home_keeps_kernels_in_memory(monkeypatch):
    for name in ("JAX_FP8GEMM_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", no_home)
    assert environment.cache_dir() is None
