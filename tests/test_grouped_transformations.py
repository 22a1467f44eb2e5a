# SPDX-License-Identifier: Apache-2.0
"""Grouped products under JAX's transformations, and what they lower to on each platform."""

import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import GroupedCase
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from test_grouped import KINDS, SMALL

import jax_fp8gemm as fp8

OTHER = GroupedCase("other", (20, 51, 0, 3), SMALL.n, SMALL.k, spare_rows=6)
OPTIONS = {"preferred_element_type": jnp.float32}


def product(kind, implementation="xla"):
    return lambda *operands: KINDS[kind][0](*operands, implementation=implementation, **OPTIONS)


def batch_of(kind):
    """Returns operands of two problems with equal shapes, stacked."""
    make = KINDS[kind][1]
    if kind == "masked":
        first = make(SMALL)
        second = (*make(SMALL, seed=5)[:2], jnp.asarray((76, 3, 0, 20), jnp.int32))
        second = (jax.tree.map(jnp.nan_to_num, second[0]), *second[1:])
    else:
        first, second = make(SMALL), make(OTHER, seed=5)
    return jax.tree.map(lambda x, y: jnp.stack([x, y]), first, second)


def pick(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


AXES = [(0, None, None), (0, None, 0), (None, None, 0), (None, 0, None), (0, 0, None), (0, 0, 0)]


@pytest.mark.sampled(7)
@pytest.mark.parametrize("in_axes", AXES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_vmap(kind, in_axes):
    stacked = batch_of(kind)
    # What is not batched is that of the first problem; so are the groups where they are.
    args = [x if a == 0 else pick(x, 0) for x, a in zip(stacked, in_axes, strict=True)]
    got = jax.vmap(product(kind), in_axes)(*args)
    for i in range(2):
        each = [pick(x, i) if a == 0 else x for x, a in zip(args, in_axes, strict=True)]
        np.testing.assert_allclose(got[i], product(kind)(*each), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_nested_vmap(kind):
    stacked = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), batch_of(kind))
    got = jax.vmap(jax.vmap(product(kind)))(*stacked)
    for i, j in np.ndindex(2, 2):
        want = product(kind)(*pick(pick(stacked, i), j))
        np.testing.assert_allclose(got[i, j], want, rtol=0, atol=2e-4)


def test_vmap_simulated(simulator_library):
    for kind in KINDS:
        for in_axes in ((0, None, 0), (0, 0, 0)):
            stacked = batch_of(kind)
            args = [x if a == 0 else pick(x, 0) for x, a in zip(stacked, in_axes, strict=True)]
            got, want = (jax.vmap(product(kind, i), in_axes)(*args) for i in ("sim", "xla"))
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-4)


@pytest.mark.parametrize("in_axes", [(0, None, 0), (None, 0, 0), (0, 0, 0), (0, None, None)])
def test_vmap_of_an_accumulator(in_axes):
    lhs, rhs, sizes = batch_of("k_grouped")
    accumulator = cases.normal((2, len(SMALL.sizes), 72, SMALL.n), seed=4)
    sizes = sizes[0]
    args = [
        x if a == 0 else pick(x, 0) for x, a in zip((lhs, rhs, accumulator), in_axes, strict=True)
    ]

    def f(lhs, rhs, accumulator):
        return fp8.k_grouped_gemm(lhs, rhs, sizes, accumulator=accumulator, implementation="xla")

    got = jax.vmap(f, in_axes)(*args)
    for i in range(2):
        each = [pick(x, i) if a == 0 else x for x, a in zip(args, in_axes, strict=True)]
        np.testing.assert_allclose(got[i], f(*each), rtol=0, atol=2e-4)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("implementation", ["xla", "sim"])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_traced(kind, implementation, simulator_library):
    """One program for all sizes, which are known to the device only."""
    traces = []

    @jax.jit
    def f(*operands):
        traces.append(kind)
        return product(kind, implementation)(*operands)

    stacked = batch_of(kind)
    for i in range(2):
        want = product(kind)(*pick(stacked, i))
        np.testing.assert_allclose(f(*pick(stacked, i)), want, rtol=0, atol=2e-4)
    assert len(traces) == 1


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd])
@pytest.mark.parametrize("kind", KINDS)
def test_differentiating_raises(kind, transform):
    lhs, rhs, groups = KINDS[kind][1](SMALL)

    def loss(scales):
        return product(kind, None)((lhs.values, scales), rhs, groups).sum()

    name = KINDS[kind][0].__name__
    with pytest.raises(TypeError, match=f"{name} is not differentiable"):
        transform(loss)(lhs.scales)


@pytest.mark.parametrize("kind", KINDS)
def test_scan_and_eval_shape(kind):
    stacked = batch_of(kind)
    shape = jax.eval_shape(product(kind), *pick(stacked, 0))
    _, got = jax.lax.scan(lambda c, each: (c, product(kind)(*each)), 0, stacked)
    assert got.shape == (2, *shape.shape)
    np.testing.assert_allclose(got[1], product(kind)(*pick(stacked, 1)), rtol=0, atol=2e-4)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("implementation", ["xla", "sim"])
@pytest.mark.parametrize("kind", KINDS)
def test_shard_map(kind, implementation, check_vma, simulator_library):
    """Operands that differ per device, and weights that do not."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    lhs_spec = P(None, "x") if kind == "k_grouped" else P("x")
    rhs_spec = lhs_spec if kind == "k_grouped" else P()
    sharded = jax.shard_map(
        product(kind, implementation),
        mesh=mesh,
        in_specs=(lhs_spec, rhs_spec, P("x")),
        out_specs=P("x"),
        check_vma=check_vma,
    )
    operands = KINDS[kind][1](SMALL)
    got = jax.jit(sharded)(*operands)
    np.testing.assert_allclose(got, product(kind)(*operands), rtol=0, atol=2e-4)


# ---- Lowering ------------------------------------------------------------------------------------


def lower(f, *args, platforms):
    return jax.jit(f).trace(*args).lower(lowering_platforms=platforms).as_text()


def calls(text):
    return re.findall(r"custom_call @jax_fp8gemm.gemm.v1.*", text)


@pytest.mark.parametrize("kind", KINDS)
def test_lowers_to_one_custom_call(kind, extension):
    operands = KINDS[kind][1](SMALL)
    (call,) = calls(lower(product(kind, None), *operands, platforms=("cuda",)))
    assert f'kind = "{kind}"' in call
    text = lower(product(kind, None), *operands, platforms=("cpu",))
    assert not calls(text) and "dot_general" in text
    for implementation, platform in (("cuda", "cpu"), ("sim", "cuda")):
        with pytest.raises(NotImplementedError, match=f"'{implementation}'.*'{platform}'"):
            lower(product(kind, implementation), *operands, platforms=(platform,))


@pytest.mark.parametrize(
    ("kind", "in_axes", "lowered_kind", "is_loop"),
    [
        ("ragged", (0, None, 0), "ragged", False),
        ("ragged", (0, 0, 0), "ragged", False),
        ("contiguous", (0, None, 0), "contiguous", False),
        ("contiguous", (0, 0, 0), "contiguous", False),
        ("masked", (0, None, 0), "ragged", False),
        ("masked", (0, 0, 0), "masked", False),
        ("k_grouped", (0, None, None), "k_grouped", False),
        ("k_grouped", (0, 0, 0), "k_grouped", True),
    ],
)
def test_vmap_lowers_to_one_custom_call(kind, in_axes, lowered_kind, is_loop, extension):
    stacked = batch_of(kind)
    args = [x if a == 0 else pick(x, 0) for x, a in zip(stacked, in_axes, strict=True)]
    text = lower(jax.vmap(product(kind, None), in_axes), *args, platforms=("cuda",))
    (call,) = calls(text)
    assert f'kind = "{lowered_kind}"' in call
    # jnp.searchsorted is a loop of its own, but not around the call.
    assert (text.find("stablehlo.while", 0, text.index(call)) >= 0) >= is_loop


def test_more_groups_than_a_kernel_takes_are_several_launches(extension):
    """A batch of weights that together have 600 groups."""
    lhs = fp8.quantize(jnp.ones((300, 4, 128)))
    rhs = fp8.quantize(jnp.ones((300, 2, 8, 128)), (128, 128))
    sizes = jnp.full((300, 2), 2, jnp.int32)
    got = jax.vmap(product("ragged"))(lhs, rhs, sizes)
    assert got.shape == (300, 4, 8) and (np.asarray(got) == 128).all()
    (call,) = calls(lower(jax.vmap(product("ragged", None)), lhs, rhs, sizes, platforms=("cuda",)))
    assert "num_groups = 2 " in call


@pytest.mark.parametrize(
    ("kind", "m", "n", "k", "num_groups"),
    [
        ("ragged", 1 << 20, 16384, 7168, 256),  # results of 2^34 elements
        ("contiguous", 1 << 20, 16384, 7168, 256),
        ("masked", 1 << 16, 8192, 7168, 256),  # operands of 2^37 elements
        ("k_grouped", 16384, 16384, 1 << 20, 64),
    ],
)
def test_products_of_extents_beyond_32_bits_are_planned(extension, kind, m, n, k, num_groups):
    (best, *_) = fp8.plan(m, n, k, kind=kind, num_groups=num_groups, num_sms=132)
    matrices = num_groups if kind in ("masked", "k_grouped") else 1
    tiles = matrices * -(-m // best["block_m"]) * -(-n // best["block_n"])
    assert best["tiles"] >= tiles
    least = 2 * m * n * k * (num_groups if kind == "masked" else 1) / 2e15 * 1e6
    assert least < best["microseconds"] < 1e3 * least


def test_shapes_beyond_32_bits_lower(extension):
    """Without allocating them: 2^31 weights and more, and 2^34 results."""
    f8, f32 = jnp.float8_e4m3fn, jnp.float32
    t, g, n, k = 1 << 20, 256, 16384, 7168
    shape = jax.ShapeDtypeStruct
    lhs = (shape((t, k), f8), shape((t, k // 128), f32))
    rhs = (shape((g, n, k), f8), shape((g, n // 128, k // 128), f32))
    sizes = shape((g,), jnp.int32)
    (call,) = calls(lower(product("ragged", None), lhs, rhs, sizes, platforms=("cuda",)))
    assert f"tensor<{t}x{n}xf32>" in call and f"m = {t} : i64" in call


def test_rows_of_all_groups_beyond_what_tma_can_name_are_refused(extension):
    with pytest.raises(ValueError, match="rows of all groups of a"):
        fp8.plan(1 << 23, 4096, 4096, kind="masked", num_groups=512, num_sms=132)
