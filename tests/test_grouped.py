# SPDX-License-Identifier: Apache-2.0
"""Grouped products: every kind and group size against float64, on every implementation."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import E4M3, E5M2, GROUPED_CASES, MANY_GROUPS_CASES, GroupedCase

import jax_fp8gemm as fp8
from jax_fp8gemm import testing

KINDS = {
    "ragged": (fp8.grouped_gemm, cases.ragged_operands),
    "contiguous": (fp8.grouped_gemm_contiguous, cases.contiguous_operands),
    "masked": (fp8.grouped_gemm_masked, cases.masked_operands),
    "k_grouped": (fp8.k_grouped_gemm, cases.k_grouped_operands),
}
SMALL = GroupedCase("small", (3, 0, 70, 1), 72, 200, spare_rows=6)


def check(kind, operands, implementation, accumulator=None, **kwargs):
    options = kwargs if accumulator is None else {**kwargs, "accumulator": accumulator}
    out = KINDS[kind][0](*operands, implementation=implementation, **options)
    testing.assert_grouped_gemm_close(
        out, *operands, accumulator, kind=kind, implementation=implementation
    )
    return out


@pytest.mark.sampled(10)
@pytest.mark.parametrize("case", GROUPED_CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_groups(kind, case, implementation):
    out = check(kind, KINDS[kind][1](case), implementation)
    assert out.dtype == (jnp.float32 if kind == "k_grouped" else jnp.bfloat16)


@pytest.mark.sampled(11)
@pytest.mark.parametrize("case", MANY_GROUPS_CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_many_groups(kind, case):
    check(kind, KINDS[kind][1](case), "xla")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("result", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_result_dtypes(kind, result, implementation):
    out = check(kind, KINDS[kind][1](SMALL), implementation, preferred_element_type=result)
    assert out.dtype == result


@pytest.mark.parametrize("dtypes", [(E4M3, E5M2), (E5M2, E4M3), (E5M2, E5M2)])
def test_operand_dtypes(dtypes, implementation):
    lhs_dtype, rhs_dtype = dtypes
    operands = cases.ragged_operands(SMALL, lhs_dtype=lhs_dtype, rhs_dtype=rhs_dtype)
    check("ragged", operands, implementation)
    check("k_grouped", cases.k_grouped_operands(SMALL, dtypes=dtypes), implementation)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("donate", [False, True])
def test_accumulator(dtype, donate, implementation):
    operands = cases.k_grouped_operands(SMALL)
    accumulator = cases.normal((len(SMALL.sizes), 72, SMALL.n), seed=9, dtype=dtype)
    kept = np.array(accumulator)  # a copy: what NumPy looks at is not donated

    def f(operands, accumulator):
        return fp8.k_grouped_gemm(
            *operands,
            accumulator=accumulator,
            preferred_element_type=dtype,
            implementation=implementation,
        )

    out = jax.jit(f, donate_argnums=1 if donate else ())(operands, accumulator)
    testing.assert_grouped_gemm_close(
        out, *operands, kept, kind="k_grouped", implementation=implementation
    )
    np.testing.assert_array_equal(out[1], kept[1])  # the empty group
    assert accumulator.is_deleted() == donate


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_accumulator_of_ragged_rows(dtype, implementation):
    """Rounded once, behind the float32 product; rows of no group keep theirs."""
    lhs, rhs, sizes = cases.ragged_operands(SMALL)
    accumulator = cases.normal((lhs.shape[0], SMALL.n), seed=9, dtype=dtype)
    options = {"implementation": implementation}
    product = fp8.grouped_gemm(lhs, rhs, sizes, preferred_element_type=jnp.float32, **options)
    testing.assert_grouped_gemm_close(product, lhs, rhs, sizes, kind="ragged", **options)
    out = fp8.grouped_gemm(
        lhs, rhs, sizes, accumulator=accumulator, preferred_element_type=dtype, **options
    )
    want = (product + accumulator.astype(jnp.float32)).astype(dtype)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(out[sum(SMALL.sizes) :], accumulator[sum(SMALL.sizes) :])
    with pytest.raises(ValueError, match=r"accumulator must have shape \(T, N\)"):
        fp8.grouped_gemm(
            lhs, rhs, sizes, accumulator=accumulator[1:], preferred_element_type=dtype, **options
        )


def test_nan_in_an_accumulator_of_another_group_stays_there(implementation):
    operands = cases.k_grouped_operands(SMALL)
    accumulator = jnp.zeros((len(SMALL.sizes), 72, SMALL.n)).at[2].set(jnp.nan)
    out = fp8.k_grouped_gemm(*operands, accumulator=accumulator, implementation=implementation)
    assert np.isnan(out[2]).all()
    assert np.isfinite(np.delete(out, 2, 0)).all()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("room", [1, 7, 63, 130])
@pytest.mark.parametrize("padding", ["zero", "unspecified"])
def test_masked_room_and_padding(room, padding, implementation):
    sizes = (min(room, 5), 0, room)
    lhs = fp8.quantize(cases.normal((3, room, 160), 0))
    lhs = cases.poisoned(lhs, np.arange(room) < np.asarray(sizes)[:, None])
    rhs = fp8.quantize(cases.normal((3, 40, 160), 1), (128, 128))
    masked_m = jnp.asarray(sizes, jnp.int32)
    out = fp8.grouped_gemm_masked(
        lhs, rhs, masked_m, padding=padding, expected_m=2, implementation=implementation
    )
    testing.assert_grouped_gemm_close(
        out, lhs, rhs, masked_m, kind="masked", padding=padding, implementation=implementation
    )


def test_a_group_may_come_twice_and_last_rows_may_be_missing(implementation):
    """Not a whole number of aligned blocks, nor of pairs of them, which clusters compute."""
    ids = np.full(2 * 128 + 70, -1, np.int32)
    ids[:100], ids[128:256], ids[256:] = 1, 0, 1
    lhs = cases.poisoned(fp8.quantize(cases.normal((len(ids), 200), 0)), ids >= 0)
    rhs = cases.expert_weights(SMALL)
    check("contiguous", (lhs, rhs, jnp.asarray(ids)), implementation)


def with_scales_times(kind, *factors):
    lhs, rhs, groups = KINDS[kind][1](SMALL)
    lhs, rhs = (
        fp8.BlockScaled(x.values, x.scales * jnp.float32(factor), x.block)
        for x, factor in zip((lhs, rhs), factors, strict=True)
    )
    return lhs, rhs, groups


@pytest.mark.sampled(7)
# Products of scales that are ordinary, small, too large and zero.
@pytest.mark.parametrize("factors", [(2.0**60, 2.0**-60), (1e-20, 1), (1e30, 1e30), (1e30, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_scales(kind, factors, implementation):
    check(kind, with_scales_times(kind, *factors), implementation)


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_scales_that_are_too_small_are_zero(kind, implementation):
    operands = with_scales_times(kind, 1e-30, 1e-30)
    assert not np.asarray(KINDS[kind][0](*operands, implementation=implementation)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_every_time(kind, implementation):
    operands = KINDS[kind][1](SMALL)
    first, second = (KINDS[kind][0](*operands, implementation=implementation) for _ in range(2))
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize("implementation", ["sim", pytest.param("cuda", marks=pytest.mark.hopper)])
def test_a_row_does_not_depend_on_its_neighbours(implementation, simulator_library):
    """The same static problem, so the same configuration, with other rows and sizes around."""
    lhs, rhs, _ = cases.ragged_operands(GroupedCase("", (100, 0, 30), 72, 300))
    other = fp8.quantize(cases.normal(lhs.shape, seed=7))

    def product(first_row, sizes):
        row = jax.tree.map(lambda x, y: x.at[first_row].set(y[50]), other, lhs)
        sizes = jnp.asarray(sizes, jnp.int32)
        return np.asarray(fp8.grouped_gemm(row, rhs, sizes, implementation=implementation))

    want = product(3, (40, 0, 90))[3]
    np.testing.assert_array_equal(product(97, (98, 32, 0))[97], want)
    np.testing.assert_array_equal(product(0, (1, 60, 0))[0], want)


@pytest.mark.parametrize(
    ("sizes", "clamped"),
    [
        ((-5, 60, 20), (0, 60, 20)),
        ((60, 1000, 20), (60, 70, 0)),
        ((2**31 - 1, 2**31 - 1, 2**31 - 1), (130, 0, 0)),
        ((-(2**31), 130, -1), (0, 130, 0)),
    ],
)
def test_sizes_that_make_no_sense_are_clamped(sizes, clamped, implementation):
    case = GroupedCase("", clamped, 40, 200, spare_rows=130 - sum(clamped))
    lhs, rhs, want = cases.ragged_operands(case)
    got = jnp.asarray(sizes, jnp.int32)

    def ragged(group_sizes):
        return fp8.grouped_gemm(lhs, rhs, group_sizes, implementation=implementation)

    np.testing.assert_array_equal(np.asarray(ragged(got)), np.asarray(ragged(want)))


def test_columns_that_make_no_sense_are_clamped(implementation):
    """What a huge group takes up to the end of the buffers is unspecified."""
    lhs, rhs, _ = cases.k_grouped_operands(GroupedCase("", (256, 128), 40, 1))
    sizes = jnp.asarray((-1, 200, 2**31 - 1, 2**31 - 1, 7), jnp.int32)
    out = fp8.k_grouped_gemm(lhs, rhs, sizes, implementation=implementation)
    assert not np.asarray(out)[[0, 3, 4]].any()
    testing.assert_grouped_gemm_close(
        out[:2], lhs, rhs, (0, 256), kind="k_grouped", implementation=implementation
    )


def test_counts_and_ids_that_make_no_sense_are_clamped(implementation):
    lhs, rhs, _ = cases.masked_operands(GroupedCase("", (20, 20, 20), 40, 200))
    counts = jnp.asarray((2**31 - 1, -7, 21), jnp.int32)
    out = fp8.grouped_gemm_masked(lhs, rhs, counts, implementation=implementation)
    testing.assert_grouped_gemm_close(
        out, lhs, rhs, jnp.asarray((20, 0, 20)), kind="masked", implementation=implementation
    )
    lhs, rhs, ids = cases.contiguous_operands(GroupedCase("", (20, 30, 40), 40, 200))
    nonsense = jnp.where(ids == 1, 2**31 - 1, ids)
    out = fp8.grouped_gemm_contiguous(lhs, rhs, nonsense, implementation=implementation)
    keep = np.asarray(ids) != 1
    want = fp8.grouped_gemm_contiguous(lhs, rhs, ids, implementation=implementation)
    np.testing.assert_array_equal(np.asarray(out)[keep], np.asarray(want)[keep])


@pytest.mark.parametrize("implementation", ["xla", "sim"])
def test_empty_problems(implementation, simulator_library):
    def shape(*dims, block=(1, 128)):
        return fp8.quantize(jnp.zeros(dims), block)

    def zeros(*dims):
        return jnp.zeros(dims, jnp.int32)

    options = {"implementation": implementation}
    square = (128, 128)
    for t, g, n, k in ((0, 2, 8, 128), (4, 0, 8, 128), (4, 2, 0, 128), (4, 2, 8, 0)):
        weights = shape(g, n, k, block=square)
        outs = [
            fp8.grouped_gemm(shape(t, k), weights, zeros(g), **options),
            fp8.grouped_gemm_contiguous(shape(t, k), weights, zeros(t), **options),
        ]
        masked = fp8.grouped_gemm_masked(shape(g, t, k), weights, zeros(g) + t, **options)
        k_grouped = fp8.k_grouped_gemm(shape(n, k), shape(t, k), zeros(g), **options)
        assert [out.shape for out in outs] == [(t, n)] * 2
        assert masked.shape == (g, t, n) and k_grouped.shape == (g, n, t)
        assert not any(np.asarray(out).any() for out in (*outs, masked, k_grouped))


def test_no_tokens_leave_the_accumulator(implementation):
    accumulator = cases.normal((2, 8, 16), 0)
    lhs, rhs = (fp8.quantize(jnp.zeros((rows, 0))) for rows in (8, 16))
    sizes = jnp.zeros(2, jnp.int32)
    out = fp8.k_grouped_gemm(
        lhs, rhs, sizes, accumulator=accumulator, implementation=implementation
    )
    np.testing.assert_array_equal(out, accumulator)


def test_num_sms(implementation):
    for kind in KINDS:
        check(kind, KINDS[kind][1](SMALL), implementation, num_sms=1)


def test_plain_tuples(implementation):
    for kind in KINDS:
        lhs, rhs, groups = KINDS[kind][1](SMALL)
        operands = ((lhs.values, lhs.scales), (rhs.values, rhs.scales), groups)
        check(kind, operands, implementation)
