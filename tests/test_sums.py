# SPDX-License-Identifier: Apache-2.0
"""Sums over devices that travel in FP8: what is exchanged, and values, each rounded as stated."""

import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _eight_devices import run_with_eight_devices
from _made_once import made_once
from _tiers import in_sample, slow_unless
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from test_sharding import REROUNDED, SAME

import jax_fp8gemm as fp8

HERE = Path(__file__).parent
# Values and scales of what devices send each other, and of the sums that all need.
SCATTER, WHOLE = {"all-to-all": 2}, {"all-to-all": 2, "all-gather": 2}
IN_DTYPE = {"reduce-scatter": 1}
E4M3, E5M2 = "float8_e4m3fn", "float8_e5m2"
DOTS = {
    f"dot, whole, {E4M3}, xla": (WHOLE, SAME),
    f"dot, rows, {E4M3}, xla": (SCATTER, SAME),
    f"dot, columns, {E4M3}, xla": (SCATTER, SAME),
    # Among the devices of one mesh axis, and then those sums among those of the other.
    f"dot, rows over one of two, {E4M3}, xla": ({"all-to-all": 4, "all-gather": 2}, SAME),
    f"dot, whole over two, {E4M3}, xla": (WHOLE, SAME),
    f"dot, rows over two, {E4M3}, xla": (SCATTER, SAME),
    # The kernels add up in another order, before the rounding.
    f"dot, whole, {E5M2}, sim": (WHOLE, REROUNDED),
    f"dot, rows, {E5M2}, sim": (SCATTER, REROUNDED),
}
OTHERS = {
    f"{name}, {how}, {E4M3}, xla": (collectives, SAME)
    for name in ("dot of a batch", "ragged_dot", "gradient of dot", "vmap of dot")
    for how, collectives in (("whole", WHOLE), ("rows", SCATTER))
}
PROGRAMS = {
    f"{kind}: {name}": expected
    for kind, (name, expected) in itertools.product(("auto", "explicit"), (DOTS | OTHERS).items())
} | {
    # Gradients come back in their dtype, or as bits and scales.
    "manual: psum_scatter, FP8, rows": ({**SCATTER, "all-gather": 1}, SAME),
    "manual: psum_scatter, FP8, columns": ({**SCATTER, "all-gather": 1}, SAME),
    "manual: psum_scatter, FP8 and pow2, rows": (WHOLE, SAME),
    "manual: psum_scatter, FP8 and pow2, columns": (WHOLE, SAME),
    "manual: psum_scatter, the default": (IN_DTYPE, SAME),
    "manual: psum_scatter, vmap": (SCATTER, SAME),
    "manual: psum_scatter, not divisible": (None, r"must have a multiple of 4 .* got \(6, 128\)"),
    f"manual: MasterWeight.all_gather, {E4M3}": (SCATTER, SAME),
    "manual: MasterWeight.all_gather, float32": (IN_DTYPE, SAME),
    f"manual: QuantizedActivation.all_gather, {E4M3}": (SCATTER, SAME),
    "manual: QuantizedActivation.all_gather, float32": (IN_DTYPE, SAME),
}
FAST_PERIOD = 16  # the fast tier has one in this many programs


@pytest.fixture(scope="module")
def period(request) -> int:
    """One in how many programs runs: all unless the slow ones are left out."""
    return FAST_PERIOD if request.config.option.markexpr == "not slow" else 1


@pytest.fixture(scope="module")
def results(tmp_path_factory, period) -> dict:
    """Runs the programs in a process that has 8 devices."""

    def run(folder):
        run_with_eight_devices(HERE / "_sum_devices.py", folder / "results.json", str(period))

    folder = made_once(tmp_path_factory, f"sums-{period}", run)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    "program", [slow_unless(in_sample(name, FAST_PERIOD), name) for name in PROGRAMS]
)
def test_program(results, program):
    collectives, bound = PROGRAMS[program]
    result = results[program]
    if collectives is None:
        assert re.search(bound, result["raised"])
        return
    assert "raised" not in result, result
    assert result["collectives"] == collectives
    assert result["error"] <= bound


def test_every_program_is_judged(results, period):
    assert set(results) == {name for name in PROGRAMS if in_sample(name, period)}


# ---- One device ----------------------------------------------------------------------------------


X = np.ones((8, 128), np.float32)


def on_one_device(f):
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("d"), out_specs=P("d")))


def test_gradients_near_the_largest_float16_stay_finite():
    """Their scale, rounded up to a power of two, would pass it."""
    recipe = fp8.Recipe(scale_format="pow2")
    f = on_one_device(lambda x: fp8.psum_scatter(x, "d", recipe=recipe))
    x = jnp.ones((8, 128), jnp.float16)
    (dx,) = jax.vjp(f, x)[1](65000 * x)
    np.testing.assert_allclose(np.asarray(dx, np.float32), 65000, rtol=2**-4)


@pytest.mark.parametrize(("shape", "dtype"), [((0, 128), "float32"), ((8, 0), "bfloat16")])
def test_nothing_to_add_up(shape, dtype):
    f = on_one_device(lambda x: fp8.psum_scatter(x, "d", recipe=fp8.Recipe(reduce_dtype=E4M3)))
    y = f(jnp.zeros(shape, dtype))
    assert (y.shape, y.dtype) == (shape, dtype)


def test_recipe_in_use():
    """The sum in FP8 differs from that in the dtype of x."""
    x = jnp.linspace(1, 2, 1024).reshape(8, 128)
    f = on_one_device(lambda x: fp8.psum_scatter(x, "d"))
    with fp8.use_recipe(fp8.Recipe(reduce_dtype=E5M2)):
        rounded = f(x)
    np.testing.assert_array_equal(rounded, fp8.quantize(x, dtype=jnp.float8_e5m2).dequantize())
    np.testing.assert_array_equal(f(x), x)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (np.ones((8, 128), np.int32), {}, TypeError, "x must .* int32"),
        (np.ones(8, np.float32), {}, ValueError, "x must .* got \\(8,\\)"),
        (X, {"scatter_dimension": 2}, ValueError, "scatter_dimension .* got 2"),
        (X, {"scatter_dimension": "0"}, TypeError, "scatter_dimension .*"),
        (X, {"implementation": "gpu"}, ValueError, "implementation must be .* got 'gpu'"),
        (X, {"recipe": "pow2"}, TypeError, "recipe must be a Recipe, got str"),
    ],
)
def test_bad_arguments(x, options, error, message):
    with pytest.raises(error, match=f"psum_scatter: {message}"):
        on_one_device(lambda x: fp8.psum_scatter(x, "d", **options))(x)


def test_no_such_mesh_axis():
    with pytest.raises(NameError, match="unbound axis name"):
        fp8.psum_scatter(X, "d")
