# SPDX-License-Identifier: Apache-2.0
"""Recipe: each choice with its error, its cost in custom calls, and where it is taken from."""

import dataclasses
import functools
import math

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _source import ROOT
from test_dot import MARGIN, RMS_ROUNDING, inputs, relative, value_and_gradients
from test_lowering import PRODUCT, QUANTIZER, custom_calls, lowered

import jax_fp8gemm as fp8

# The same estimate for e5m2, which has one bit less of mantissa: twice the error.
E5M2_ROUNDING = 2 * RMS_ROUNDING
ROOT2 = math.sqrt(2)
E5M2 = jnp.float8_e5m2
# Recipe: error of dx and dw beside its estimate, and products and quantizers of a step for a GPU.
RECIPES = {
    "default": (fp8.Recipe(), RMS_ROUNDING * ROOT2, RMS_ROUNDING * ROOT2, 3, 4),
    "e5m2": (
        fp8.Recipe(gradient_dtype=E5M2),
        math.hypot(RMS_ROUNDING, E5M2_ROUNDING),
        math.hypot(RMS_ROUNDING, E5M2_ROUNDING),
        3,
        4,
    ),
    # The activations of the weight gradient are rounded twice.
    "float32": (
        fp8.Recipe(scale_format="float32"),
        RMS_ROUNDING * ROOT2,
        RMS_ROUNDING * math.sqrt(3),
        3,
        4,
    ),
    "pow2": (fp8.Recipe(scale_format="pow2"), RMS_ROUNDING * ROOT2, RMS_ROUNDING * ROOT2, 3, 5),
    # One rounding, of the activations; nothing is scaled along tokens.
    "bfloat16": (fp8.Recipe(weight_gradient="bfloat16"), RMS_ROUNDING * ROOT2, RMS_ROUNDING, 2, 3),
}


def step(recipe, x, w, dy, implementation="xla"):
    product = functools.partial(fp8.dot, recipe=recipe, implementation=implementation)
    return value_and_gradients(product, x, w, dy)


@pytest.fixture(scope="module")
def operands():
    return inputs((3, 200, 384), (384, 256))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", RECIPES)
def test_error_is_that_of_its_roundings(operands, name):
    recipe, dx_error, dw_error, *_ = RECIPES[name]
    _, *got = step(recipe, *operands)
    _, *want = value_and_gradients(jnp.matmul, *operands)
    for result, exact, estimate in zip(got, want, (dx_error, dw_error), strict=True):
        assert estimate / MARGIN <= relative(result, exact) <= estimate * MARGIN


@pytest.mark.slow
@pytest.mark.parametrize("weight_gradient", ["fp8", "bfloat16"])
@pytest.mark.parametrize("scale_format", [None, "float32", "pow2"])
@pytest.mark.parametrize("gradient_dtype", [jnp.float8_e4m3fn, E5M2])
def test_every_combination(operands, gradient_dtype, scale_format, weight_gradient):
    """Errors are those of the roundings, and a master gives the same bits."""
    recipe = fp8.Recipe(gradient_dtype, scale_format, weight_gradient)
    x, w, dy = (t[0] if t.ndim == 3 else t for t in operands)
    y, *got = step(recipe, x, w, dy)
    _, *want = value_and_gradients(jnp.matmul, x, w, dy)
    arriving = E5M2_ROUNDING if gradient_dtype == E5M2 else RMS_ROUNDING
    dx_error = dw_error = math.hypot(RMS_ROUNDING, arriving)
    if weight_gradient == "bfloat16":
        dw_error = RMS_ROUNDING
    elif scale_format == "float32":
        dw_error = math.hypot(ROOT2 * RMS_ROUNDING, arriving)
    for result, exact, estimate in zip(got, want, (dx_error, dw_error), strict=True):
        assert estimate / MARGIN <= relative(result, exact) <= estimate * MARGIN

    master = fp8.MasterWeight.quantize(w, recipe=recipe, implementation="xla")
    master_y, dx, dw = step(recipe, x, master, dy)
    for a, b in ((master_y, y), (dx, got[0]), (dw.master, got[1])):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", RECIPES)
def test_cost_in_custom_calls(operands, name):
    recipe, _, _, *counts = RECIPES[name]
    text = lowered(functools.partial(step, recipe, implementation=None), operands)
    assert [custom_calls(text, target) for target in (PRODUCT, QUANTIZER)] == counts


def test_table_of_the_guide():
    page = (ROOT / "docs" / "models.md").read_text()
    table = page.split("| `Recipe(...)` |")[1].split("\n\n")[0]
    shown = [line.split(" | ")[1:] for line in table.splitlines()[2:]]
    want = [
        [f"{100 * dx:.2f} %", f"{100 * dw:.2f} %", f"{products} products, {quantizers} quantizers"]
        for _, dx, dw, products, quantizers in RECIPES.values()
    ]
    assert [[cell.removesuffix(" |") for cell in row] for row in shown] == want


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", RECIPES)
def test_simulator_agrees(operands, name):
    x, w, dy = (t[..., :128] for t in operands)
    w = w[:128]
    recipe = RECIPES[name][0]
    want = step(recipe, x, w, dy)
    got = step(recipe, x, w, dy, implementation="sim")
    assert all(relative(a, b) < 1e-6 for a, b in zip(got, want, strict=True))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", RECIPES)
def test_ragged_dot(operands, name):
    """One group is a dot."""
    x, w, dy = operands
    x, dy = x[0], dy[0]
    recipe = RECIPES[name][0]
    sizes = jnp.asarray([len(x)])

    def ragged(x, w):
        return fp8.ragged_dot(x, w, sizes, recipe=recipe, implementation="xla")

    got = value_and_gradients(ragged, x, w[None], dy)
    want = step(recipe, x, w, dy)
    assert relative(got[2][0], want[2]) < 1e-6
    assert all(relative(a, b) < 1e-6 for a, b in zip(got[:2], want[:2], strict=True))


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", RECIPES)
def test_cost_of_ragged_dot_in_custom_calls(operands, name):
    """That of dot."""
    recipe, _, _, *counts = RECIPES[name]
    x, w, dy = operands
    ragged = functools.partial(fp8.ragged_dot, group_sizes=jnp.asarray([90, 110]), recipe=recipe)
    f = functools.partial(value_and_gradients, ragged)
    text = lowered(f, (x[0], jnp.stack([w, w]), dy[0]))
    assert [custom_calls(text, target) for target in (PRODUCT, QUANTIZER)] == counts


@pytest.mark.sampled(5)
@pytest.mark.parametrize("product", ["dot", "ragged_dot"])
@pytest.mark.parametrize("name", RECIPES)
def test_each_gradient_is_the_same_alone(operands, product, name):
    """Where the other one is not asked for, less is quantized; nothing else changes."""
    x, w, dy = (t[0] if t.ndim == 3 else t for t in operands)
    options = {"recipe": RECIPES[name][0], "implementation": "xla"}
    f = functools.partial(fp8.dot, **options)
    if product == "ragged_dot":
        w = jnp.stack([w, 2 * w])
        f = functools.partial(fp8.ragged_dot, group_sizes=jnp.asarray([90, 100]), **options)
    loss = lambda x, w: (f(x, w) * dy).sum()  # noqa: E731
    both = jax.grad(loss, (0, 1))(x, w)
    for i in (0, 1):
        np.testing.assert_array_equal(jax.grad(loss, i)(x, w), both[i])


BFLOAT16 = fp8.Recipe(weight_gradient="bfloat16")


def in_bfloat16(sizes, x, dy):
    """Returns each group's sum of what is multiplied, in float64."""
    x = np.asarray(fp8.quantize(x, scale_format="pow2").dequantize(), np.float64)
    dy = np.asarray(dy.astype(jnp.bfloat16), np.float64)
    ends = np.minimum(np.cumsum(np.maximum(sizes, 0)), len(x))
    starts = np.concatenate([[0], ends[:-1]])
    return np.stack([x[a:b].T @ dy[a:b] for a, b in zip(starts, ends, strict=True)])


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "sizes", [(130, 0, 301, -4, 200), (700,), (1,) * 9, (0, 0), (3, 2**31 - 1)], ids=str
)
def test_experts_in_bfloat16(sizes):
    """Sums of groups that steps do not divide; rows in none are anything, NaN for example."""
    x, dy = cases.normal((700, 72), seed=1), cases.normal((700, 40), seed=2)
    experts = cases.normal((len(sizes), 72, 40), seed=3)
    count = min(int(np.maximum(sizes, 0).sum()), 700)
    want = in_bfloat16(sizes, x, dy)

    def pull(x, dy):
        f = functools.partial(fp8.ragged_dot, recipe=BFLOAT16, group_sizes=jnp.asarray(sizes))
        return jax.vjp(f, x, experts)[1](dy)[1]

    garbage = (jnp.asarray(t).at[count:].set(jnp.nan) for t in (x, dy))
    for got in (pull(x, dy), jax.jit(pull)(*garbage)):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_vmap_and_masters_in_bfloat16():
    """Each example has sums of its own, and what they are added to; no rows, no change."""
    x, dy = cases.normal((2, 70, 72), seed=1), cases.normal((2, 70, 40), seed=2)
    sizes = np.asarray([[30, 0, 25], [0, 70, 0]])
    before = cases.normal((2, 3, 72, 40), seed=4)

    def pull(x, dy, sizes, before):
        w = fp8.MasterWeight.quantize(cases.normal((3, 72, 40), seed=3)).accumulate_into(before)
        f = functools.partial(fp8.ragged_dot, recipe=BFLOAT16, group_sizes=sizes)
        return jax.vjp(f, x, w)[1](dy)[1].gradient

    got = jax.vmap(pull)(x, dy, jnp.asarray(sizes), before)
    for i in range(2):
        want = in_bfloat16(sizes[i], x[i], dy[i]) + np.asarray(before[i])
        np.testing.assert_allclose(got[i], want, rtol=1e-5, atol=1e-4)
    nothing = pull(x[0, :0], dy[0, :0], jnp.zeros(3, jnp.int32), before[0])
    np.testing.assert_array_equal(nothing, before[0])


def test_gradients_that_are_rounded_once_are_those_of_dx():
    x, w, dy = inputs((256, 128), (128, 128))
    recipe = fp8.Recipe(scale_format="pow2")
    rounded = fp8.quantize(dy, scale_format="pow2").dequantize()
    np.testing.assert_array_equal(step(recipe, x, w, dy)[2], step(recipe, x, w, rounded)[2])
    assert relative(step(fp8.Recipe(), x, w, dy)[2], step(fp8.Recipe(), x, w, rounded)[2]) > 1e-3


# ---- Where a recipe comes from -------------------------------------------------------------------


def gradient_of(f, operands):
    x, w, dy = operands
    return jax.vjp(f, x, w)[1](dy)[0]


@pytest.mark.parametrize("jit", [False, True])
def test_recipe_in_use(operands, jit):
    """A jitted function is traced again under another recipe; an argument goes first."""
    dot = functools.partial(fp8.dot, implementation="xla")
    dot = jax.jit(dot) if jit else dot
    wide = fp8.Recipe(gradient_dtype=E5M2)
    default = gradient_of(dot, operands)
    with fp8.use_recipe(wide) as recipe:
        assert recipe is wide
        np.testing.assert_array_equal(gradient_of(dot, operands), step(wide, *operands)[1])
        given = functools.partial(fp8.dot, implementation="xla", recipe=fp8.Recipe())
        np.testing.assert_array_equal(gradient_of(given, operands), default)
        general = functools.partial(
            fp8.dot_general, dimension_numbers=(((2,), (0,)), ((), ())), implementation="xla"
        )
        np.testing.assert_array_equal(gradient_of(general, operands), step(wide, *operands)[1])
    np.testing.assert_array_equal(gradient_of(dot, operands), default)


def test_recipes_are_values():
    assert fp8.Recipe(gradient_dtype="float8_e5m2") == fp8.Recipe(gradient_dtype=E5M2)
    assert hash(fp8.Recipe(reduce_dtype="float32")) == hash(fp8.Recipe(reduce_dtype=jnp.float32))
    with pytest.raises(dataclasses.FrozenInstanceError):
        fp8.Recipe().scale_format = "pow2"


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"gradient_dtype": jnp.bfloat16}, TypeError, "gradient_dtype must be one of float8"),
        ({"scale_format": "ue8m0"}, ValueError, "scale_format must be one of .* got 'ue8m0'"),
        ({"weight_gradient": "fp16"}, ValueError, "weight_gradient must be one of"),
        ({"reduce_dtype": jnp.int32}, TypeError, "reduce_dtype must be one of .* got int32"),
    ],
)
def test_bad_fields(fields, error, message):
    with pytest.raises(error, match=f"Recipe: {message}"):
        fp8.Recipe(**fields)


def test_bad_arguments(operands):
    x, w, _ = operands
    with pytest.raises(TypeError, match="dot: recipe must be a Recipe, got str"):
        fp8.dot(x, w, recipe="pow2")
    with pytest.raises(TypeError, match="use_recipe: recipe must be a Recipe, got dict"):
        with fp8.use_recipe({}):
            pass
