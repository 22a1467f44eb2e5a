# SPDX-License-Identifier: Apache-2.0
"""Every error of the grouped products and their quantizers that depends on arguments alone."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import E4M3, GroupedCase

import jax_fp8gemm as fp8
from jax_fp8gemm import deep_gemm, testing

CASE = GroupedCase("", (3, 1), 40, 256)
RAGGED = cases.ragged_operands(CASE)
CONTIGUOUS = cases.contiguous_operands(CASE)
MASKED = cases.masked_operands(CASE)
K_GROUPED = cases.k_grouped_operands(CASE)
X = jnp.ones((4, 256))
SIZES = CASE.group_sizes


def rows_of(groups):
    return fp8.quantize(jnp.ones((groups, 40, 256)), (128, 128))


def wide(x):
    return fp8.BlockScaled(x.values, x.scales[..., ::128, :], (128, 128))


def caller(function, operands, names):
    """Returns a call of `function` with some arguments replaced."""

    def call(**changes):
        arguments = {**dict(zip(names, operands, strict=True)), **changes}
        positional = [arguments.pop(name) for name in names]
        return function(*positional, **arguments)

    return call


def k_grouped_with(**changes):
    return k_grouped(**{"accumulator": jnp.ones((2, 72, 40)), **changes})


ragged = caller(fp8.grouped_gemm, RAGGED, ("lhs", "rhs", "group_sizes"))
contiguous = caller(fp8.grouped_gemm_contiguous, CONTIGUOUS, ("lhs", "rhs", "group_ids"))
masked = caller(fp8.grouped_gemm_masked, MASKED, ("lhs", "rhs", "masked_m"))
k_grouped = caller(fp8.k_grouped_gemm, K_GROUPED, ("lhs", "rhs", "group_sizes"))
quantize_k = caller(fp8.quantize_k_grouped, (X, SIZES), ("x", "group_sizes"))
close = caller(
    testing.assert_grouped_gemm_close,
    (fp8.grouped_gemm(*RAGGED), *RAGGED),
    ("out", "lhs", "rhs", "groups"),
)

KINDS = {
    "grouped_gemm": (ragged, "group_sizes"),
    "grouped_gemm_contiguous": (contiguous, "group_ids"),
    "grouped_gemm_masked": (masked, "masked_m"),
    "k_grouped_gemm": (k_grouped, "group_sizes"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_all_kinds_refuse(name):
    call, groups = KINDS[name]
    wrong = [
        ({"lhs": X}, TypeError, "lhs must be"),
        ({"rhs": X}, TypeError, "rhs must be"),
        ({"lhs": (X, X)}, TypeError, "lhs values.*float32"),
        ({"implementation": "triton"}, ValueError, "implementation.*'triton'"),
        ({"implementation": 3}, TypeError, "implementation.*int"),
        ({"num_sms": 0}, ValueError, "num_sms.*0"),
        ({"num_sms": 1.5}, TypeError, "num_sms.*1.5"),
        ({"preferred_element_type": E4M3}, TypeError, "preferred_element_type.*float8"),
        ({groups: [1, 2]}, TypeError, f"{groups} must be an array, got list"),
        ({groups: np.ones(2, bool)}, TypeError, f"{groups} must have an integer dtype, got bool"),
        ({groups: jnp.ones((2, 2), jnp.int32)}, ValueError, rf"{groups}.*\(2, 2\)"),
    ]
    for changes, error, message in wrong:
        with pytest.raises(error, match=f"{name}: {message}"):
            call(**changes)


@pytest.mark.parametrize("name", list(KINDS)[:3])
def test_what_kinds_with_weights_refuse(name):
    call, _ = KINDS[name]
    narrow = fp8.quantize(jnp.ones((2, 40, 256)))
    lhs = {"grouped_gemm": RAGGED, "grouped_gemm_contiguous": CONTIGUOUS}.get(name, MASKED)[0]
    wrong = [
        ({"rhs": narrow}, r"rhs.*\(128, 128\).*\(1, 128\)"),
        ({"rhs": (narrow.values, narrow.scales)}, r"rhs scales.*\(2, 1, 2\).*\(2, 40, 2\)"),
        ({"rhs": jax.tree.map(lambda x: x[0], RAGGED[1])}, r"rhs.*\(G, N, K\).*\(40, 256\)"),
        ({"rhs": fp8.quantize(jnp.ones((2, 40, 128)), (128, 128))}, r"rhs.*256.*\(2, 40, 128\)"),
        ({"rhs": rows_of(513)}, "rhs must have at most 512 groups, got 513"),
        ({"lhs": wide(lhs)}, r"lhs.*\(1, 128\).*\(128, 128\)"),
        ({"lhs": jax.tree.map(lambda x: x[None], lhs)}, r"lhs.*got .*\(1, .*vmap"),
    ]
    if name == "grouped_gemm_masked":
        wrong[4] = ({"rhs": rows_of(513)}, "rhs")
    for changes, message in wrong:
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            call(**changes)


ERRORS = {
    "sizes_count": (
        lambda: ragged(group_sizes=jnp.ones(3, jnp.int32)),
        ValueError,
        r"group_sizes must have shape \(G,\) = \(2,\), got \(3,\)",
    ),
    "ids_count": (
        lambda: contiguous(group_ids=jnp.ones(3, jnp.int32)),
        ValueError,
        r"group_ids must have shape \(T,\) = \(256,\), got \(3,\)",
    ),
    "counts_count": (
        lambda: masked(masked_m=jnp.ones(3, jnp.int32)),
        ValueError,
        r"masked_m must have shape \(G,\) = \(2,\), got \(3,\)",
    ),
    "masked_groups": (
        lambda: masked(rhs=rows_of(3)),
        ValueError,
        r"rhs.*G of lhs = 2.*\(3, 40, 256\)",
    ),
    "padding": (lambda: masked(padding="nan"), ValueError, "padding.*'nan'"),
    "expected_m": (lambda: masked(expected_m=-1), ValueError, "expected_m.*-1"),
    "expected_m_type": (lambda: masked(expected_m=1.5), TypeError, "expected_m.*1.5"),
    "k_rhs_block": (
        lambda: k_grouped(rhs=wide(K_GROUPED[1])),
        ValueError,
        r"rhs.*\(1, 128\).*\(128, 128\)",
    ),
    "k_lhs_3d": (
        lambda: k_grouped(lhs=jax.tree.map(lambda x: x[None], K_GROUPED[0])),
        ValueError,
        "lhs must be a matrix",
    ),
    "k_tokens_differ": (
        lambda: k_grouped(rhs=fp8.quantize(jnp.ones((40, 128)))),
        ValueError,
        r"rhs must have shape \(N, T\) with the T of lhs = 256, got \(40, 128\)",
    ),
    "k_groups": (
        lambda: k_grouped(group_sizes=jnp.ones(513, jnp.int32)),
        ValueError,
        "group_sizes.*512.*513",
    ),
    "quantize_k_groups": (
        lambda: quantize_k(group_sizes=jnp.ones(513, jnp.int32)),
        ValueError,
        "quantize_k_grouped: group_sizes must have at most 512 groups, got 513",
    ),
    "k_accumulator_dtype": (
        lambda: k_grouped_with(preferred_element_type=jnp.bfloat16),
        TypeError,
        "accumulator.*bfloat16.*float32",
    ),
    "k_accumulator_shape": (
        lambda: k_grouped_with(accumulator=jnp.ones((2, 40, 72))),
        ValueError,
        r"accumulator.*\(G, M, N\) = \(2, 72, 40\).*\(2, 40, 72\)",
    ),
    # Quantizers
    "transposed_x": (
        lambda: fp8.quantize_transposed(X[0]),
        ValueError,
        r"quantize_transposed: x.*\(256,\)",
    ),
    "transposed_x_dtype": (
        lambda: fp8.quantize_transposed(SIZES),
        TypeError,
        "quantize_transposed: x.*int32",
    ),
    "transposed_dtype": (
        lambda: fp8.quantize_transposed(X, dtype=jnp.int8),
        TypeError,
        "dtype.*int8",
    ),
    "transposed_format": (
        lambda: fp8.quantize_transposed(X, scale_format="fp8"),
        ValueError,
        "scale_format",
    ),
    "transposed_implementation": (
        lambda: fp8.quantize_transposed(X, implementation="gpu"),
        ValueError,
        "implementation",
    ),
    "k_quantize_x": (lambda: quantize_k(x=X[None]), ValueError, r"x must be a matrix"),
    "k_quantize_x_dtype": (lambda: quantize_k(x=SIZES[None]), TypeError, "x.*int32"),
    "k_quantize_sizes": (
        lambda: quantize_k(group_sizes=jnp.ones(2)),
        TypeError,
        "group_sizes.*integer dtype.*float32",
    ),
    "k_quantize_sizes_2d": (
        lambda: quantize_k(group_sizes=SIZES[None]),
        ValueError,
        r"group_sizes.*\(1, 2\)",
    ),
    # plan
    "plan_kind": (lambda: fp8.plan(8, 8, 8, kind="sparse"), ValueError, "kind.*'sparse'"),
    "plan_groups": (
        lambda: fp8.plan(8, 8, 8, kind="ragged", num_groups=513),
        ValueError,
        "num_groups.*513",
    ),
    "plan_dense_groups": (lambda: fp8.plan(8, 8, 8, num_groups=2), ValueError, "num_groups.*2"),
    "plan_expected_m": (
        lambda: fp8.plan(8, 8, 8, kind="masked", expected_m=-2),
        ValueError,
        "expected_m.*-2",
    ),
    "plan_rhs_block": (
        lambda: fp8.plan(8, 8, 8, kind="ragged", rhs_block=(1, 128)),
        ValueError,
        r"block.*\(1, 128\)",
    ),
    "plan_accumulate": (
        lambda: fp8.plan(8, 8, 8, kind="ragged", accumulate=True),
        ValueError,
        "accumulate.*'ragged'",
    ),
    # deep_gemm
    "m_indices": (
        lambda: deep_gemm.m_grouped_fp8_gemm_nt_contiguous(*CONTIGUOUS[:2], SIZES),
        ValueError,
        "group_ids",
    ),
    "deep_gemm_expected_m": (
        lambda: deep_gemm.m_grouped_fp8_gemm_nt_masked(*MASKED, -1),
        ValueError,
        "expected_m",
    ),
    # testing
    "close_kind": (lambda: close(kind="sparse"), ValueError, "kind.*'sparse'"),
    "close_padding": (lambda: close(padding="nan"), ValueError, "padding.*'nan'"),
    "close_shape": (lambda: close(out=jnp.ones((4, 41))), ValueError, r"out.*T, N.*\(4, 40\)"),
    "close_dtype": (lambda: close(out=SIZES), TypeError, "out.*int32"),
    "close_value": (lambda: close(out=jnp.ones((4, 40))), AssertionError, "out of bounds"),
    "check_groups": (lambda: testing.check_groups(3), TypeError, "function.*int"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_argument_and_what_it_got(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()


def test_padding_that_is_not_zero_is_found():
    case = GroupedCase("", (3, 1), 40, 256, spare_rows=2)
    operands = cases.ragged_operands(case)
    out = fp8.grouped_gemm(*operands)
    testing.assert_grouped_gemm_close(out, *operands)
    with pytest.raises(AssertionError, match=r"1 elements.*not zero.*\(5, 7\).*0.5"):
        testing.assert_grouped_gemm_close(out.at[5, 7].set(0.5), *operands)
    testing.assert_grouped_gemm_close(out.at[5, 7].set(0.5), *operands, padding="unspecified")
