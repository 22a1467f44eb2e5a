# SPDX-License-Identifier: Apache-2.0
"""Sizes and ids of groups of every integer dtype, 64-bit types on and off; floats of 64 bits."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import GroupedCase
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8
from jax_fp8gemm import deep_gemm, testing
from jax_fp8gemm._src.operands import group_checks

CASE = GroupedCase("", (3, 0, 70), 24, 130, spare_rows=7)
DTYPES = ("int8", "int16", "int64", "uint8", "uint16", "uint32", "uint64", ">i8", "int4")
X = cases.normal((CASE.num_rows, CASE.k), 0)
W = cases.normal((len(CASE.sizes), CASE.k, CASE.n), 1)
CONTIGUOUS = cases.contiguous_operands(CASE)
IDS = tuple(np.asarray(CONTIGUOUS[2]).tolist())


def bound(function, operands, **options):
    """Returns a function of sizes or ids alone."""
    return lambda groups, implementation: function(
        *operands, groups, implementation=implementation, **options
    )


# Every public function of sizes or ids: what the argument is called, and one.
FUNCTIONS = {
    "grouped_gemm": (
        bound(fp8.grouped_gemm, cases.ragged_operands(CASE)[:2]),
        "group_sizes",
        CASE.sizes,
    ),
    "grouped_gemm_contiguous": (
        bound(fp8.grouped_gemm_contiguous, CONTIGUOUS[:2]),
        "group_ids",
        IDS,
    ),
    "grouped_gemm_masked": (
        bound(fp8.grouped_gemm_masked, cases.masked_operands(CASE)[:2]),
        "masked_m",
        CASE.sizes,
    ),
    "k_grouped_gemm": (
        bound(fp8.k_grouped_gemm, cases.k_grouped_operands(CASE)[:2]),
        "group_sizes",
        CASE.sizes,
    ),
    "quantize_k_grouped": (bound(fp8.quantize_k_grouped, (X,)), "group_sizes", CASE.sizes),
    "ragged_dot": (bound(fp8.ragged_dot, (X, W)), "group_sizes", CASE.sizes),
}
SIZED = [name for name, (_, argument, _) in FUNCTIONS.items() if argument != "group_ids"]


def of_dtype(groups, dtype):
    """Returns groups that the dtype holds; of 4 bits the large size, and of no sign -1, is 7."""
    dtype = jnp.dtype(dtype)
    limits = jnp.iinfo(dtype)
    return np.asarray([g if limits.min <= g <= limits.max else 7 for g in groups]).astype(dtype)


def assert_same(got, want):
    """Bit by bit, NaN too."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_integer_dtype_is_int32(name):
    """All are the one program of int32."""
    f = functools.partial(FUNCTIONS[name][0], implementation="xla")
    for dtype in DTYPES:
        groups = of_dtype(FUNCTIONS[name][2], dtype)
        assert_same(f(groups), f(jnp.asarray(groups.astype(np.int32))))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sizes_and_ids_of_64_bits_are_traced(name):
    """By every transformation, for the implementation of every platform."""
    f = functools.partial(FUNCTIONS[name][0], implementation=None)
    mesh = jax.make_mesh((1,), ("e",), axis_types=(jax.sharding.AxisType.Auto,))
    groups = jnp.asarray(FUNCTIONS[name][2], jnp.int32)
    want = jax.tree.leaves(jax.eval_shape(f, groups))
    with jax.enable_x64(True):
        groups = jnp.asarray(groups, jnp.int64)
        assert jax.tree.leaves(jax.eval_shape(f, groups)) == want
        mapped = jax.shard_map(f, mesh=mesh, in_specs=P(), out_specs=P())
        assert len(jax.tree.leaves(jax.eval_shape(mapped, groups))) == len(want)
        batch = jax.tree.leaves(jax.eval_shape(jax.vmap(f), jnp.stack([groups, groups])))
    types = zip(batch, want, strict=True)
    assert all((x.shape[1:], x.dtype) == (y.shape, y.dtype) for x, y in types)


def test_with_64_bit_types_on(implementation, simulator_library):
    """Values, of a batch too."""
    f = functools.partial(FUNCTIONS["grouped_gemm"][0], implementation=implementation)
    batch = np.asarray([CASE.sizes, (70, 2**40, 3)])
    want = [f(sizes) for sizes in batch]
    with jax.enable_x64(True):
        assert_same(f(batch[0]), want[0])
        mapped = jax.jit(jax.vmap(f), compiler_options=cases.AS_FOR_USERS)
        assert_same(list(np.asarray(mapped(jnp.asarray(batch)))), want)


# What a cast to int32 would make a size of 3, of -1 or of 0, and the nearest of int32.
LARGEST, LEAST = 2**31 - 1, -(2**31)
BEYOND = {
    (2**40, LARGEST): ("int64", "uint64"),
    (2**32 + 3, LARGEST): ("int64", "uint64"),
    (2**32 - 1, LARGEST): ("uint32", "int64", "uint64"),
    (2**63, LARGEST): ("uint64",),
    (2**63 - 1, LARGEST): ("int64", "uint64", ">i8"),
    (-(2**32) + 3, LEAST): ("int64", ">i8"),
    (-(2**40), LEAST): ("int64",),
    (-(2**63), LEAST): ("int64",),
}
WAYS = {
    "numpy": (False, np.asarray, lambda f: f),
    "numpy, x64": (True, np.asarray, lambda f: f),
    "jax": (True, jnp.asarray, lambda f: f),
    "jit": (True, jnp.asarray, jax.jit),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_int32_does_not_hold_becomes_the_nearest_that_it_does(way):
    x64, asarray, transform = WAYS[way]
    f = transform(lambda value: group_checks.int32("f", "sizes", value))
    for (value, want), dtypes in BEYOND.items():
        for dtype in dtypes:
            with jax.enable_x64(x64):
                native = np.dtype(dtype).newbyteorder("=") if asarray is jnp.asarray else dtype
                got = f(asarray(np.asarray([3, value], native)))
            assert (got.dtype, got.tolist()) == (jnp.int32, [3, want])


def test_an_array_of_64_bits_that_has_outlived_them():
    with jax.enable_x64(True):
        sizes = jnp.asarray([3, 2**40, 0])
    assert group_checks.int32("f", "sizes", sizes).tolist() == [3, LARGEST, 0]


def test_int32_costs_nothing():
    jaxpr = jax.make_jaxpr(lambda sizes: group_checks.int32("f", "sizes", sizes))
    assert jaxpr(CASE.group_sizes).eqns == []


@pytest.mark.parametrize("name", SIZED)
def test_sizes_beyond_int32_do_not_wrap(name):
    """Too large: cut off at the rows there are. Negative: 0."""
    f = functools.partial(FUNCTIONS[name][0], implementation="xla")
    rest = CASE.num_rows - 3
    largest = f(jnp.asarray([3, rest if name in ("grouped_gemm", "ragged_dot") else LARGEST, 0]))
    for value in (2**40, 2**32 + 3, 2**32):
        assert_same(f(np.asarray([3, value, 0])), largest)
    assert_same(f(np.asarray([3, -(2**32) + 3, 0])), f(jnp.asarray([3, 0, 0])))


def test_gradients():
    def gradients(sizes):
        loss = lambda x, w: fp8.ragged_dot(x, w, sizes, implementation="xla").sum()  # noqa: E731
        return jax.grad(loss, (0, 1))(X, W)

    sizes = np.asarray(CASE.sizes)
    assert_same(gradients(sizes), gradients(CASE.group_sizes))
    with jax.enable_x64(True):
        types = jax.eval_shape(gradients, jnp.asarray(sizes))
    assert [each.dtype for each in types] == [jnp.float32, jnp.float32]


def test_names_of_deep_gemm():
    lhs, rhs, ids = CONTIGUOUS
    f = deep_gemm.m_grouped_fp8_gemm_nt_contiguous
    assert_same(f(lhs, rhs, np.asarray(ids, np.int64)), f(lhs, rhs, ids))
    lhs, rhs, counts = cases.masked_operands(CASE)
    f = deep_gemm.m_grouped_fp8_gemm_nt_masked
    assert_same(f(lhs, rhs, np.asarray(counts, np.uint64), 8), f(lhs, rhs, counts, 8))


def test_ids_that_a_cast_would_make_groups_of_are_none():
    """They are unspecified where operands hold something, and no row of a group changes."""
    f = functools.partial(FUNCTIONS["grouped_gemm_contiguous"][0], implementation="xla")
    ids = np.asarray(IDS)
    ids[ids < 0] = 2**32 + 1
    assert_same(f(ids)[ids < 3], f(np.asarray(IDS))[ids < 3])
    with pytest.raises(ValueError, match="group_ids must be from -1 to 2, got 2147483647 in row"):
        testing.check_groups(lambda: f(ids))()


def test_the_judge_takes_them_too():
    operands = cases.ragged_operands(CASE)
    for sizes in (np.asarray(CASE.sizes, np.uint64), np.asarray(CASE.sizes)):
        testing.assert_grouped_gemm_close(fp8.grouped_gemm(*operands), *operands[:2], sizes)
    sizes = np.asarray([3, 2**63 - 1, 2**63 - 1])  # whose sum wraps
    lhs, rhs, _ = cases.ragged_operands(GroupedCase("", (3, 77, 0), CASE.n, CASE.k))
    testing.assert_grouped_gemm_close(fp8.grouped_gemm(lhs, rhs, sizes), lhs, rhs, sizes)


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.float16, np.float32, np.float64, np.complex64, jnp.bfloat16, object]
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_no_integer_is_refused(name, dtype):
    f, argument, groups = FUNCTIONS[name]
    wanted = f"{name}: {argument} must have an integer dtype, got {np.dtype(dtype)}[.]"
    with pytest.raises(TypeError, match=wanted):
        f(np.asarray(groups).astype(dtype), "xla")


def test_the_checked_mode_reports_sizes_beyond_int32():
    f = functools.partial(FUNCTIONS["ragged_dot"][0], implementation="xla")
    with pytest.raises(ValueError, match="ragged_dot: group_sizes must be at least 0 and add up"):
        testing.check_groups(lambda: f(np.asarray([3, 2**40, 0])))()


# ---- float64 ------------------------------------------------------------------------------------

WEIGHT = cases.normal((130, 24), 2)
PLAIN = {
    "dot": (fp8.dot, {"x": X, "w": WEIGHT}),
    "dot_general": (
        functools.partial(fp8.dot_general, dimension_numbers=(((1,), (0,)), ((), ()))),
        {"lhs": X, "rhs": WEIGHT},
    ),
    "ragged_dot": (
        functools.partial(fp8.ragged_dot, group_sizes=CASE.group_sizes),
        {"lhs": X, "rhs": W},
    ),
    "quantize": (fp8.quantize, {"x": X}),
    "quantize_transposed": (fp8.quantize_transposed, {"x": X}),
    "quantize_k_grouped": (
        functools.partial(fp8.quantize_k_grouped, group_sizes=CASE.group_sizes),
        {"x": X},
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_float64_is_refused_by_name_with_the_remedy(name):
    function, operands = PLAIN[name]
    for wrong in operands:
        wide = {**operands, wrong: np.asarray(operands[wrong], np.float64)}
        message = f"{name}: {wrong} must have dtype .*, got float64; cast it to float32 or bfloat16"
        with jax.enable_x64(True):
            with pytest.raises(TypeError, match=message):
                function(**wide)
            with pytest.raises(TypeError, match=message):
                jax.jit(function)(**wide)


@pytest.mark.parametrize("name", PLAIN)
def test_float64_of_numpy_is_float32_where_it_is_to_jax(name):
    function, operands = PLAIN[name]
    wide = {key: np.asarray(value, np.float64) for key, value in operands.items()}
    got, want = (function(**each, implementation="xla") for each in (wide, operands))
    assert_same(got, want)


def test_scales_and_accumulators_of_64_bits_are_refused():
    lhs, rhs, sizes = cases.k_grouped_operands(CASE)
    wide = np.zeros((3, 72, 24))
    with pytest.raises(TypeError, match="accumulator .* float32, got float64; cast it to float32"):
        fp8.k_grouped_gemm(lhs, rhs, sizes, accumulator=wide)
    with pytest.raises(TypeError, match="scales .* float32, got float64; cast it to float32"):
        fp8.BlockScaled(lhs.values, np.asarray(lhs.scales, np.float64), lhs.block)


@pytest.mark.parametrize("name", ["dot", "ragged_dot"])
def test_layers_train_with_64_bit_types_on(name):
    function, operands = PLAIN[name]
    loss = lambda *values: function(**dict(zip(operands, values, strict=True))).sum()  # noqa: E731
    with jax.enable_x64(True):
        types = jax.eval_shape(jax.grad(loss, (0, 1)), *operands.values())
    assert [each.dtype for each in types] == [jnp.float32, jnp.float32]
