# SPDX-License-Identifier: Apache-2.0
"""Division among 8 devices: which collectives XLA compiles, where results are, and their values."""

import ast
import json
from pathlib import Path

import jax
import pytest
from _eight_devices import run_with_eight_devices
from _made_once import made_once
from _tiers import in_sample, slow_unless

HERE = Path(__file__).parent
NONE: dict[str, int] = {}
SUM = {"all-reduce": 1}
SCATTER = {"reduce-scatter": 1}

# Where no collective is involved, or a sum of float32: the order of additions alone differs.
SAME = 2e-6
# Devices cut their tokens into blocks of 128 of their own: two independent roundings of a weight
# gradient, each 3.75e-2 from the exact one (see test_dot.py).
OTHER_BLOCKS = 2**0.5 * 4e-2
# Sums in another order before a rounding to FP8, which then sometimes goes the other way.
REROUNDED = 2e-3

# Program: collectives, bound of the error.
EITHER_MESH = {
    "gemm M": (NONE, SAME),
    "gemm N": (NONE, SAME),
    "gemm MxN": (NONE, SAME),
    "gemm M over both": (NONE, SAME),
    "gemm K": (SUM, SAME),
    "gemm MxK": (SUM, SAME),
    "gemm KxN": (SUM, SAME),
    "gemm K over both": (SUM, SAME),
    "gemm K of lhs alone": (SUM, SAME),
    "gemm with accumulator, MxK": (SUM, SAME),
    "gemm M, one block of N and K": (NONE, SAME),
    "quantize rows": (NONE, 0),
    "quantize rows and columns": (NONE, 0),
    "quantize columns": (NONE, 0),
    "quantize square, rows": (NONE, 0),
    "quantize square, rows and columns": (NONE, 0),
    "quantize transposed, rows and columns": (NONE, 0),
    "quantize k_grouped, columns": (NONE, 0),
    "quantize swiglu, rows and columns": (NONE, 0),
    "quantize rms_norm, rows": (NONE, SAME),
    # Of the squares, a float32 for each row.
    "quantize rms_norm, rows and columns": (SUM, REROUNDED),
    "quantize valid rows, rows and columns": (NONE, 0),
    "dequantize rows": (NONE, 0),
    "dequantize rows and columns": (NONE, 0),
    "dequantize columns": (NONE, 0),
    "dequantize square, rows": (NONE, 0),
    "dequantize square, rows and columns": (NONE, 0),
    "dequantize transposed, rows and columns": (NONE, 0),
    "dequantize k_grouped, columns": (NONE, 0),
    # Computed in other vectors, with other roundings of the activation before that to its dtype.
    "dequantize swiglu, rows and columns": (NONE, SAME),
    "dequantize rms_norm, rows": (NONE, SAME),
    "dequantize rms_norm, rows and columns": ({"all-reduce": 2}, REROUNDED),
    "dequantize valid rows, rows and columns": (NONE, 0),
    # One sum for both weight gradients and the loss, which XLA combines.
    "step data": (SUM, REROUNDED),
    "step data over both": ({"all-reduce": 3}, OTHER_BLOCKS),
    # One sum for what follows the second product and one for the gradient of x, which is not used.
    "step tensor": (SUM, REROUNDED),
    "step data and tensor": ({"all-reduce": 2}, REROUNDED),
}
EITHER_MESH |= {
    "masked, experts": (NONE, SAME),
    "masked, experts x N": (NONE, SAME),
    "masked, experts over both": (NONE, SAME),
    "masked, experts x K": (SUM, SAME),
    "contiguous, rows": (NONE, SAME),
    "contiguous, rows x N": (NONE, SAME),
    "contiguous, rows over both": (NONE, SAME),
    "contiguous, rows x K": (SUM, SAME),
    "batch, experts x N": (NONE, SAME),
    "batch, experts over both": (NONE, SAME),
    "batch, experts x K": (SUM, SAME),
    "ragged, N": (NONE, SAME),
    "ragged, K": (SUM, SAME),
    "k_grouped, M x N": (NONE, SAME),
    "k_grouped with accumulator, M x N": (NONE, SAME),
    "gradients of ragged_dot, N": (SUM, SAME),  # of the activations
    "gradients of ragged_dot, K": (NONE, SAME),
    "gradients of ragged_dot, N, in bfloat16": (SUM, SAME),
    "gradients of ragged_dot, K, in bfloat16": (NONE, SAME),
    "gradients of a batch of dots, experts x N": (SUM, SAME),
    "dot_general with a batch": (NONE, SAME),
}
VMAPPED = (
    "vmap of masked, shared weights",
    "vmap of contiguous",
    "vmap of ragged",
    "vmap of ragged, shared weights",
    "vmap of k_grouped",
)
SPLIT_BLOCKS = ("N", "K", "N over both", "K over both")
# Those that jax.shard_map divides by hand too.
BY_HAND = (
    "masked, experts x N",
    "masked, experts x K",
    "contiguous, rows x N",
    "contiguous, rows x K",
    "ragged, N",
    "ragged, K",
    "k_grouped, M x N",
    "k_grouped with accumulator, M x N",
    "batch, experts x N",
    "dot_general with a batch",
    "quantize rows and columns",
    "quantize swiglu, rows and columns",
    "quantize rms_norm, rows",
    "quantize square, rows and columns",
    "quantize transposed, rows and columns",
    "quantize k_grouped, columns",
    "dequantize rows and columns",
    "dequantize swiglu, rows and columns",
    "dequantize rms_norm, rows",
    "dequantize square, rows and columns",
    "dequantize transposed, rows and columns",
    "dequantize k_grouped, columns",
)
EXPECTED = {
    **{
        f"{kind}: {name}": row for kind in ("auto", "explicit") for name, row in EITHER_MESH.items()
    },
    **{f"manual: {name}": EITHER_MESH[name] for name in BY_HAND},
    # Each device folds the batch that it has; automatic meshes fold before they divide.
    **{f"explicit: {name}": (NONE, SAME) for name in VMAPPED},
    "explicit: vmap of vmap of ragged": (NONE, SAME),
    **{f"auto: {name}": (None, SAME) for name in VMAPPED},
    **{f"auto: gradients of dot, blocks split along {n}": (None, SAME) for n in SPLIT_BLOCKS},
    "auto: ragged_dot, rows": (None, SAME),
    "auto: gemm K, result along N": (SCATTER, SAME),
    "auto: gemm K, result along M": (SCATTER, SAME),
    "auto: gemm MxK, result along M": (SCATTER, SAME),
    # Values and scales of one operand: a byte per element moves, not two.
    "auto: gemm weights divided over the devices of M": ({"all-gather": 2}, SAME),
    "explicit: gemm weights divided over the devices of M": ({"all-gather": 2}, SAME),
    "auto: gemm one mesh axis for M and N": ({"all-gather": 2}, SAME),
    # 512 over 8 devices.
    "auto: gemm, a block split": (SUM, SAME),
    "explicit: gemm, a block split": (SUM, SAME),
    # The largest magnitudes of blocks.
    **{f"{kind}: quantize square, a block split": (SUM, 0) for kind in ("auto", "explicit")},
    **{f"{kind}: quantize transposed, a block split": (SUM, 0) for kind in ("auto", "explicit")},
    "auto: dequantize, a block split": (None, 0),
    "explicit: dequantize, a block split": ({"all-gather": 1}, 0),  # the scales
    "explicit: vmap of dequantize": (NONE, 0),
    "explicit: joined parts": (NONE, 0),
    "auto: quantize k_grouped, rows": ({"all-gather": 1}, 0),
    # What knows its groups by where they lie cannot be divided there.
    "auto: masked, M": ({"all-gather": 2}, SAME),
    "auto: ragged, rows": ({"all-gather": 2}, SAME),
    "auto: ragged, experts": ({"all-gather": 2}, SAME),
    "auto: contiguous, experts": ({"all-gather": 2}, SAME),
    "manual: gradients of ragged_dot, tokens": (SUM, REROUNDED),
    # Rows there and back, twice, and how many; who sends how many to whom.
    "manual: experts, float32, all-to-all": ({"all-gather": 1, "all-to-all": 5}, SAME),
    "manual: experts, float32, ragged all-to-all": (None, SAME),  # emulated
    "manual: experts, FP8": ({"all-gather": 1, "all-to-all": 5}, REROUNDED),
    # Bits and scales there, rows back; gradients both ways.
    "manual: experts, FP8 rows": ({"all-gather": 1, "all-to-all": 6}, REROUNDED),
    "manual: experts, FP8 rows, ragged all-to-all": (None, REROUNDED),
    "manual: experts, FP8 both ways": ({"all-gather": 1, "all-to-all": 7}, 0),
    "manual: experts, FP8 both ways, ragged all-to-all": (None, SAME),
    # Results, and gradients of rows, as bits and scales.
    "manual: experts, FP8 results": ({"all-gather": 1, "all-to-all": 7}, REROUNDED),
    "manual: experts, FP8 rows and results": ({"all-gather": 1, "all-to-all": 8}, REROUNDED),
    "manual: experts, FP8 results, ragged all-to-all": (None, REROUNDED),
    "manual: experts without room, all-to-all": ({"all-gather": 1, "all-to-all": 3}, SAME),
    "manual: experts without room, ragged all-to-all": (None, SAME),
    "auto: gemm MxK in an ambient mesh": (SUM, SAME),
    "auto: gemm of whole operands in an ambient mesh": (NONE, SAME),
    "auto: ragged_dot, group sizes": (None, SAME),
    "explicit: gemm MxK under auto_axes": (SUM, SAME),
    "manual: gemm MxK": (SUM, SAME),
    "manual: gemm M, y automatic": (NONE, SAME),
    "manual: step data": (SUM, REROUNDED),
    "manual: exported step": (SUM, SAME),
    "manual: exported grouped_gemm_masked": (NONE, SAME),
    "manual: exported gradient of ragged_dot": (NONE, SAME),
    # What sequence parallelism costs anyway: tokens are gathered in FP8.
    "auto: step data, tensor and sequence": (
        {"all-gather": 5, "all-reduce": 2, "reduce-scatter": 1},
        REROUNDED,
    ),
    # Weights are gathered in FP8, gradients scattered.
    "auto: step fully sharded data": (
        {"all-gather": 4, "all-reduce": 2, "reduce-scatter": 2},
        REROUNDED,
    ),
    "explicit: dot_general ('x', None, 'y')": (SCATTER, SAME),
    "explicit: dot_general ('x', 'y')": (SCATTER, SAME),
    "explicit: dot_general ('x',)": (SUM, SAME),
    "explicit: gradients of ragged_dot with out_sharding, N": (None, SAME),
    "explicit: gradients of ragged_dot with out_sharding, N, result whole": (None, SAME),
    "explicit: gradients of ragged_dot with out_sharding, K of the activations": (None, SAME),
    "explicit: gradients of ragged_dot with out_sharding, K of the experts": (None, SAME),
    "explicit: vmap of dot with out_sharding": (NONE, SAME),
    "explicit: gradient of a master of whole bits": (NONE, SAME),
    **{
        f"{kind}: gradients of dot of {name}, rows": (SUM, SAME)
        for kind in ("auto", "explicit")
        for name in ("swiglu", "gelu", "rms_norm")
    },
    # XLA shards the gradient that arrives, which every device could compute.
    **{f"auto: gradients of dot of {name}, K": (None, SAME) for name in ("swiglu", "gelu")},
    **{f"explicit: gradients of dot of {name}, K": (NONE, SAME) for name in ("swiglu", "gelu")},
    # The roots of rows.
    "auto: gradients of dot of rms_norm, K": (None, SAME),
    "explicit: gradients of dot of rms_norm, K": (SUM, SAME),
    "explicit: grad(vmap(dot)) over a divided batch": ({"all-reduce": 2}, SAME),
    "explicit: dot_general without set_mesh": ({"all-reduce": 2}, SAME),
}
# Division of the results, where the program above does not ask for it.
SPECS = {
    "gemm M": ["('x',)"],
    "gemm N": ["(None, 'y')"],
    "gemm MxN": ["('x', 'y')"],
    "gemm M over both": ["(('x', 'y'),)"],
    "gemm K": ["()"],
    "gemm MxK": ["('x',)"],
    "gemm KxN": ["(None, 'y')"],
    "quantize rows": ["('x',)"] * 2,
    "quantize columns": ["(None, 'y')"] * 2,
    "quantize square, rows and columns": ["('x', 'y')"] * 2,
    "step data and tensor": ["()", "(None, 'y')", "('y',)"],
    "quantize transposed, rows and columns": ["('y', 'x')"] * 2,
    "dequantize square, rows and columns": ["('x', 'y')"] * 2,
    "dequantize transposed, rows and columns": ["('y', 'x')", "('x', 'y')"],
    "masked, experts x N": ["('x', None, 'y')"],
    "contiguous, rows x N": ["('x', 'y')"],
    "k_grouped, M x N": ["(None, 'x', 'y')"],
}
# Divisions that an explicit mesh must not have: what the error says.
REFUSED = {
    "gemm one mesh axis for M and N": ("gemm: ", "'x'", "N"),
    "quantize k_grouped, rows": ("quantize_k_grouped: x", "along T"),
    "step data, tensor and sequence": ("dot: ", "'y'", "N"),
    "step fully sharded data": ("dot: ", "'x'", "N", "out_sharding"),
    "out_sharding of another rank": ("dot: out_sharding must have at most 2 dimensions",),
    "out_sharding of another axis": ("dot: out_sharding must", "('x', 'y')", "'z'"),
    "dot_general of a divided inner dimension": ("dot_general: ", "lhs", "merged"),
    "masked, M": ("grouped_gemm_masked: lhs", "along M"),
    "ragged, rows": ("grouped_gemm: lhs", "along T"),
    "ragged, experts": ("grouped_gemm: rhs", "along G"),
    "contiguous, experts": ("grouped_gemm_contiguous: rhs", "along G"),
    "ragged_dot, rows": ("ragged_dot: lhs", "along T"),
    "ragged_dot, group sizes": ("ragged_dot: group_sizes", "along G"),
}
NEEDS_BATCH_AXES = {
    "explicit: vmap of dot with out_sharding",
    "explicit: vmap of dequantize",
    "explicit: grad(vmap(dot)) over a divided batch",
    "explicit: gradients of a batch of dots, experts x N",
    "explicit: dot_general with a batch",
    *(f"explicit: {name}" for name in (*VMAPPED, "vmap of vmap of ragged")),
    *(f"explicit: batch, experts {which}" for which in ("x N", "over both", "x K")),
}


def _run_programs(folder: Path, period: int) -> None:
    run_with_eight_devices(HERE / "_devices.py", folder / "results.json", str(period))


# The fast tier has one in this many programs.
FAST_PERIOD = 24


def _is_fast(name: str) -> bool:
    return in_sample(name, FAST_PERIOD)


@pytest.fixture(scope="module")
def period(request) -> int:
    """One in how many programs runs: all unless the slow ones are left out."""
    return FAST_PERIOD if request.config.option.markexpr == "not slow" else 1


@pytest.fixture(scope="module")
def results(tmp_path_factory, period) -> dict:
    """Runs the programs in a process that has 8 devices."""
    folder = made_once(
        tmp_path_factory, f"sharding-{period}", lambda folder: _run_programs(folder, period)
    )
    return json.loads((folder / "results.json").read_text())


def test_every_program_is_judged(results, period):
    every = {*EXPECTED, *(f"explicit: {name}" for name in REFUSED)}
    assert set(results) == {name for name in every if in_sample(name, period)}


@pytest.mark.parametrize("name", [slow_unless(_is_fast(name), name) for name in EXPECTED])
def test_collectives_and_values(results, name):
    if name in NEEDS_BATCH_AXES and jax.__version_info__ < (0, 10):
        pytest.skip("jax.vmap over a dimension that an explicit mesh shards needs jax 0.10")
    collectives, bound = EXPECTED[name]
    result = results[name]
    assert "raised" not in result, result
    assert collectives is None or result["collectives"] == collectives
    assert result["error"] <= bound


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "grouped_gemm_masked", "gradient of ragged_dot"])
def test_exported_program_names_versioned_targets(results, name):
    exported = results[f"manual: exported {name}"]
    targets = ["jax_fp8gemm.gemm.v1", "jax_fp8gemm.quantize.v1"]
    assert (exported["devices"], exported["targets"]) == (8, targets)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        slow_unless(_is_fast(f"{kind}: {name}"), kind, name)
        for kind in ("auto", "explicit")
        for name in SPECS
    ],
)
def test_results_stay_where_the_operands_are(results, kind, name):
    def normal(spec):
        entries = ast.literal_eval(spec)
        while entries and entries[-1] is None:
            entries = entries[:-1]
        return entries

    got = results[f"{kind}: {name}"]["specs"]
    assert list(map(normal, got)) == list(map(normal, SPECS[name]))


@pytest.mark.parametrize(
    "name", [slow_unless(_is_fast(f"explicit: {name}"), name) for name in REFUSED]
)
def test_explicit_meshes_refuse_to_move_an_operand(results, name):
    message = results[f"explicit: {name}"]["raised"]
    assert all(part in message for part in REFUSED[name]), message
    assert "reshard" in message or "out_sharding must" in message
