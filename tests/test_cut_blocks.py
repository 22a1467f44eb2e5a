# SPDX-License-Identifier: Apache-2.0
"""Blocks of 128 that lie on several devices: values, gradients, and what devices exchange."""

import itertools
import json
from pathlib import Path

import pytest
from _eight_devices import run_with_eight_devices
from _made_once import made_once
from _tiers import in_sample, slow_unless
from test_sharding import SAME

HERE = Path(__file__).parent
PRODUCTS = ("gemm", "vmap of gemm", "ragged", "contiguous", "masked")
SIMULATED = ("gemm, sim", "masked, sim")
TRAINED = (
    "dot",
    "dot, pow2",
    "dot, bfloat16 weight gradient",
    "dot of BlockScaled",
    "dot of MasterWeight",
    "ragged_dot",
)
QUANTIZERS = ("quantize", "quantize square", "quantize_transposed", "quantize swiglu")
# Along which blocks have 128 elements.
BLOCKED = {"quantize": "K", "quantize swiglu": "K", "quantize_transposed": "N"}
INSIDE, ACROSS, WHOLE = 64, 88, 128  # extents of a device's part
BY_PART = {
    INSIDE: (*PRODUCTS, *SIMULATED, "dot", *QUANTIZERS),
    ACROSS: (*PRODUCTS, *SIMULATED, *TRAINED, *QUANTIZERS),
    WHOLE: ("gemm", "dot", "quantize square"),
}
DIVIDED = [
    (kind, op, axis, part)
    for part, ops in BY_PART.items()
    for kind, op, axis in itertools.product(("auto", "explicit"), ops, "NK")
]
# Values and scales, or values and the largest magnitudes of blocks; and the gradient's sums.
SCATTER = {"reduce-scatter": 1}
GATHERED = {
    "manual: MasterWeight.all_gather along 0": {"all-gather": 1, "all-reduce": 1, **SCATTER},
    "manual: MasterWeight.all_gather along 1": {"all-gather": 1, "all-reduce": 1, **SCATTER},
    "manual: QuantizedActivation.all_gather along 0": {"all-gather": 2, **SCATTER},
}
OWN_SCALES = {
    f"manual: gemm with own scales, {axis} {part}": (axis, part)
    for axis, part in itertools.product("NK", (INSIDE, ACROSS, WHOLE))
}
FAST_PERIOD = 24  # the fast tier has one in this many programs


def _name(kind: str, op: str, axis: str, part: int) -> str:
    return f"{kind}: {op}, {axis} {part}"


def _slow(name: str, *values):
    return slow_unless(in_sample(name, FAST_PERIOD), *values)


@pytest.fixture(scope="module")
def period(request) -> int:
    """One in how many programs runs: all unless the slow ones are left out."""
    return FAST_PERIOD if request.config.option.markexpr == "not slow" else 1


@pytest.fixture(scope="module")
def results(tmp_path_factory, period) -> dict:
    """Runs the programs in a process that has 8 devices."""

    def run(folder):
        run_with_eight_devices(HERE / "_cut_devices.py", folder / "results.json", str(period))

    folder = made_once(tmp_path_factory, f"cut-blocks-{period}", run)
    return json.loads((folder / "results.json").read_text())


def test_every_program_is_judged(results, period):
    every = {*(_name(*each) for each in DIVIDED), *GATHERED, *OWN_SCALES}
    assert set(results) == {name for name in every if in_sample(name, period)}


@pytest.mark.parametrize(
    ("kind", "op", "axis", "part"), [_slow(_name(*each), *each) for each in DIVIDED]
)
def test_values_gradients_and_traffic(results, kind, op, axis, part):
    """As of one device. Bit by bit, where nothing is summed in another order."""
    result = results[_name(kind, op, axis, part)]
    collectives, first = result["collectives"], result["specs"][0]
    is_exact = (op in SIMULATED and axis == "N") or (op in QUANTIZERS and "swiglu" not in op)
    assert result["error"] <= (0 if is_exact else SAME)
    if op in PRODUCTS + SIMULATED:
        assert collectives == ({} if axis == "N" else {"all-reduce": 1})
    if op in QUANTIZERS:
        assert "'y'" in first
        is_cut = part != WHOLE and axis in BLOCKED.get(op, "NK")
        assert ("'y'" in result["specs"][1]) == (not is_cut)
        if kind == "explicit":
            assert collectives == ({"all-reduce": 1} if is_cut else {})
    else:
        assert ("'y'" in first) == (axis == "N")
    if kind == "explicit":  # where results are is no choice of XLA's
        assert set(collectives) <= {"all-reduce"}


@pytest.mark.parametrize("name", [_slow(name, name) for name in GATHERED])
def test_what_is_gathered_by_hand(results, name):
    assert results[name] == {**results[name], "collectives": GATHERED[name], "error": 0.0}


@pytest.mark.parametrize("name", [_slow(name, name) for name in OWN_SCALES])
def test_own_scales_by_hand(results, name):
    """Of parts inside of a block and of whole blocks; others are refused."""
    (axis, part), result = OWN_SCALES[name], results[name]
    if part == ACROSS:
        rule = f"dimension {'NK'.index(axis)} must be whole blocks of 128 or lie inside one, got 88"
        assert rule in result["raised"]
    else:
        assert result["collectives"] == ({} if axis == "N" else {"all-reduce": 1})
        assert result["error"] <= (0 if axis == "N" else SAME)


EDGES = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jax_fp8gemm as fp8

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
x, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(16, 200), (200, 360)]))

def put(x, *spec):
    return jax.device_put(x, NamedSharding(mesh, P(*spec)))

# Of an axis of one device: nothing is cut, and the kernel stays.
mesh = jax.make_mesh((1, 8), ("one", "y"), axis_types=(EXPLICIT, EXPLICIT))
with jax.set_mesh(mesh):
    quantize = jax.jit(lambda x: fp8.quantize(x, implementation="sim").values)
    text = quantize.lower(put(x, None, "one")).as_text()
    assert "jax_fp8gemm.quantize" in text and "all_reduce" not in text

# Parts that are not equal.
mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AUTO, AUTO))
for spec, f in (
    ((None, "y"), lambda x, w: fp8.dot(x, w[:, :203])),
    (("y",), lambda x, w: fp8.dot(x[:, :199], w[:199])),
):
    np.testing.assert_allclose(jax.jit(f)(x, put(w, *spec)), jax.jit(f)(x, w), atol=1e-4)

# Axes that are left to an explicit mesh.
mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(EXPLICIT, EXPLICIT))
with jax.set_mesh(mesh):
    gather = lambda w: fp8.MasterWeight.all_gather(w, "x").quantized.values
    f = jax.shard_map(gather, in_specs=P("x"), out_specs=P(), axis_names={"x"}, check_vma=False)
    try:
        jax.jit(f)(put(w, "x", "y"))
    except ValueError as error:
        assert "as 100 along axis 0 does" in str(error), error
    else:
        raise AssertionError("not refused")
"""


@pytest.mark.slow
def test_edges():
    run_with_eight_devices("-c", EDGES)
