# SPDX-License-Identifier: Apache-2.0
"""The checked mode: sizes and ids of groups that make no sense are reported, and only then."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import GroupedCase
from test_grouped import KINDS

import jax_fp8gemm as fp8
from jax_fp8gemm import testing

CASE = GroupedCase("", (3, 0, 70), 24, 130, spare_rows=7)
LARGE = 2**31 - 1

NONSENSE = {
    "ragged_negative": ("ragged", (-1, 3, 4), r"group_sizes.*at most 80, got \[-1 +3 +4\]"),
    "ragged_sum": ("ragged", (3, 70, 8), "group_sizes.*at most 80"),
    "ragged_overflow": ("ragged", (LARGE, LARGE, 2), "group_sizes"),
    "masked_negative": ("masked", (3, -1, 70), "masked_m.*from 0 to 77"),
    "masked_large": ("masked", (3, 78, 70), "masked_m.*from 0 to 77"),
    "k_negative": ("k_grouped", (-1, 3, 4), "group_sizes.*multiple of 128.*at most 384"),
    "k_sum": ("k_grouped", (1, 1, 129), "group_sizes.*multiple of 128.*at most 384"),
    "k_overflow": ("k_grouped", (LARGE, LARGE, LARGE), "group_sizes"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_reported(name):
    kind, groups, message = NONSENSE[name]
    lhs, rhs, _ = KINDS[kind][1](CASE)
    checked = testing.check_groups(KINDS[kind][0])
    with pytest.raises(ValueError, match=f"{KINDS[kind][0].__name__}: {message}"):
        checked(lhs, rhs, jnp.asarray(groups, jnp.int32))


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (2, 3, "group_ids must be from -1 to 2, got 3 in row 2"),
        (2, -2, "group_ids must be from -1 to 2, got -2 in row 2"),
        (2, 1, "must name one group"),
        (69, -1, None),
        (10, -1, "must name one group, and then -1, in each 128 rows"),
    ],
)
def test_nonsense_ids_are_reported(row, value, message):
    lhs, rhs, ids = cases.contiguous_operands(CASE)
    ids = ids.at[row].set(value)
    checked = testing.check_groups(fp8.grouped_gemm_contiguous)
    if message is None:
        checked(lhs, rhs, ids)
    else:
        with pytest.raises(ValueError, match=message):
            checked(lhs, rhs, ids)


@pytest.mark.parametrize("kind", KINDS)
def test_what_makes_sense_passes(kind):
    operands = KINDS[kind][1](CASE)
    got = testing.check_groups(KINDS[kind][0])(*operands)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(KINDS[kind][0](*operands)))


def test_the_quantizer_is_checked():
    with pytest.raises(ValueError, match="quantize_k_grouped: group_sizes"):
        testing.check_groups(fp8.quantize_k_grouped)(jnp.ones((8, 4)), jnp.asarray([9], jnp.int32))


def test_a_layer_is_checked_by_its_own_name():
    x, w = jnp.ones((8, 16)), jnp.ones((2, 16, 4))
    sizes = jnp.asarray([8, 1], jnp.int32)
    checked = testing.check_groups(jax.value_and_grad(lambda x: fp8.ragged_dot(x, w, sizes).sum()))
    with pytest.raises(ValueError, match="ragged_dot: group_sizes.*at most 8"):
        checked(x)


@pytest.mark.parametrize("offset", [-1, 2])
def test_an_offset_beyond_the_groups_is_reported(offset):
    def f(offset):
        return fp8.ragged_dot(
            jnp.ones((8, 16)), jnp.ones((1, 16, 4)), jnp.asarray([5, 3]), None, None, offset
        )

    with pytest.raises(ValueError, match=f"group_offset must be from 0 to 1, got {offset}"):
        testing.check_groups(f)(jnp.asarray(offset))
    testing.check_groups(f)(jnp.asarray(1))


def test_only_what_is_checked_pays_for_it():
    """Also where the same inner function was compiled before, and is used again after."""
    lhs, rhs, sizes = cases.ragged_operands(CASE)
    inner = jax.jit(fp8.grouped_gemm)
    outer = jax.jit(lambda sizes: jax.lax.map(lambda s: inner(lhs, rhs, s), sizes[None]))
    wrong = sizes.at[0].set(-1)
    outer(wrong)
    with pytest.raises(ValueError, match="group_sizes"):
        testing.check_groups(outer)(wrong)
    outer(wrong)
    assert "check" not in str(outer.trace(wrong).jaxpr)


def test_checks_under_vmap_and_custom_derivatives():
    lhs, rhs, sizes = cases.ragged_operands(CASE)

    @jax.custom_vjp
    def f(x, sizes):
        return fp8.grouped_gemm(lhs, rhs, sizes).astype(jnp.float32).sum() * x

    f.defvjp(lambda x, sizes: (f(x, sizes), None), lambda _, g: (g, None))
    grad = testing.check_groups(jax.vmap(jax.grad(f), (None, 0)))
    grad(1.0, jnp.stack([sizes, sizes]))
    with pytest.raises(ValueError, match="group_sizes"):
        grad(1.0, jnp.stack([sizes, sizes - 1]))
