# SPDX-License-Identifier: Apache-2.0
"""jax.vmap over a batch of nothing: each function, and each choice of what is batched."""

import itertools

import jax
import jax.numpy as jnp
import pytest

import jax_fp8gemm as fp8

pytestmark = pytest.mark.usefixtures("extension")

X = jnp.ones((256, 128), jnp.bfloat16)
W = jnp.ones((2, 128, 128), jnp.bfloat16)
SIZES = jnp.asarray([128, 128], jnp.int32)
ROWS, WEIGHTS = fp8.quantize(X), fp8.quantize(W, (128, 128))
COLUMNS = fp8.quantize_k_grouped(X, SIZES)


def gradients(product, count):
    return jax.grad(lambda *args: product(*args).astype(jnp.float32).sum(), tuple(range(count)))


def accumulated(lhs, rhs, accumulator):
    return fp8.gemm(lhs, rhs, accumulator=accumulator)


FUNCTIONS = {
    "gemm": (fp8.gemm, (ROWS, WEIGHTS[0])),
    "gemm, 1x128": (fp8.gemm, (ROWS, ROWS)),
    "gemm, accumulator": (accumulated, (ROWS, WEIGHTS[0], X)),
    "grouped_gemm": (fp8.grouped_gemm, (ROWS, WEIGHTS, SIZES)),
    "grouped_gemm_contiguous": (
        fp8.grouped_gemm_contiguous,
        (ROWS, WEIGHTS, jnp.zeros(256, jnp.int32)),
    ),
    "grouped_gemm_masked": (
        fp8.grouped_gemm_masked,
        (fp8.quantize(X.reshape(2, 128, 128)), WEIGHTS, SIZES),
    ),
    "k_grouped_gemm": (fp8.k_grouped_gemm, (COLUMNS, COLUMNS, SIZES)),
    "quantize": (fp8.quantize, (X,)),
    "quantize, groups": (lambda x, sizes: fp8.quantize(x, group_sizes=sizes), (X, SIZES)),
    "quantize, norm": (lambda x, w: fp8.quantize(fp8.rms_norm(x, w)), (X, jnp.ones(128))),
    "quantize, swiglu": (lambda x, up: fp8.quantize(fp8.swiglu(x, up)), (X, X)),
    "quantize_transposed": (fp8.quantize_transposed, (X,)),
    "quantize_k_grouped": (fp8.quantize_k_grouped, (X, SIZES)),
    "dot": (gradients(fp8.dot, 2), (X, W[0])),
    "ragged_dot": (fp8.ragged_dot, (X, W, SIZES)),
    "ragged_dot, gradients": (gradients(fp8.ragged_dot, 2), (X, W, SIZES)),
}
SLOW = ("ragged_dot, gradients",)


def names():
    return [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FUNCTIONS]


@pytest.mark.parametrize("name", names())
def test_empty_batch(name):
    function, args = FUNCTIONS[name]
    each = jax.tree.leaves(jax.eval_shape(function, *args))
    for axes in itertools.product((0, None), repeat=len(args)):
        if 0 not in axes:
            continue
        given = [
            arg if axis is None else jax.tree.map(lambda x: x[None][:0], arg)
            for arg, axis in zip(args, axes, strict=True)
        ]
        traced = jax.jit(jax.vmap(function, axes)).trace(*given)
        got = jax.tree.leaves(traced.out_info)
        assert [x.shape for x in got] == [(0, *x.shape) for x in each], axes
        traced.lower(lowering_platforms=("cuda",))
