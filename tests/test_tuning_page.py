# SPDX-License-Identifier: Apache-2.0
"""docs/tuning.md is true: constants with their values, choices, lengths of loops."""

import re

import pytest
from _sass import Golden
from _source import ROOT

import jax_fp8gemm as fp8

PAGE = (ROOT / "docs/tuning.md").read_text()
COST_MODEL = (ROOT / "csrc/gemm/cost_model.cc").read_text()
CONSTANTS = re.findall(r"^constexpr double (k\w+) = ([^;]+);", COST_MODEL, re.M)
LOOPS = re.findall(r"^\| `(1d\S+)` \| (\d+) \| (\d+) \| (\d+) \|", PAGE, re.M)
COUNTS = ("instructions", "stall_cycles", "exposed_cycles")
CHOICES = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| `([^`]+)` \| (\d+) \|$", PAGE, re.M)


def _table_row(name: str) -> str | None:
    found = re.search(rf"^\| `{name}` \| (.*?) \|", PAGE, re.M)
    return found and found[1].replace("`", "")


@pytest.mark.parametrize(("name", "value"), CONSTANTS)
def test_constant_is_cited_with_its_value(name, value):
    assert _table_row(name) == value


def test_only_constants_that_exist_are_cited():
    cited = set(re.findall(r"`(k[A-Z]\w+)`", PAGE))
    assert cited <= {name for name, _ in CONSTANTS}


@pytest.mark.parametrize(("m", "n", "k", "tile", "tiles_per_cta"), CHOICES)
def test_choice_is_that_of_the_heuristics(extension, m, n, k, tile, tiles_per_cta):
    best = fp8.plan(int(m), int(n), int(k), num_sms=132)[0]
    # Keys without their family and types, which are the same for all rows.
    configuration = best["config"].removeprefix("1d2d.").replace(".e4m3.e4m3.bf16", "")
    got = (configuration, best["tiles_per_cta"])
    assert got == (tile, int(tiles_per_cta)), "update docs/tuning.md"


@pytest.mark.parametrize(("key", *COUNTS), LOOPS)
def test_loop_is_as_long_as_accepted(key, instructions, stall_cycles, exposed_cycles):
    accepted = Golden.load("13.5").kernels[key]
    got = tuple(accepted[f"loop_{name}"] for name in COUNTS)
    page = (int(instructions), int(stall_cycles), int(exposed_cycles))
    assert got == page, "update docs/tuning.md"


EXPOSED = dict(re.findall(r"^    case (\d+): return (\d+);", COST_MODEL, re.M))


def test_exposed_products_of_scales_are_those_of_the_machine_code(extension):
    """Beside the FFMAs and what 128x128 shows, which hides all products."""
    kernels = {
        key: facts
        for key, facts in Golden.load("13.5").kernels.items()
        if key.startswith("1d1d") and key.endswith(".e4m3.e4m3.f32")
    }
    shown = {}
    for key, facts in kernels.items():
        config = extension.core().describe_config(key)
        ffma = config["row_slices"] * config["block_n"] // 2
        shown[key] = facts["loop_exposed_cycles"] - ffma, EXPOSED.get(str(config["block_n"]), 0)
    rest = min(beside for beside, _ in shown.values())
    wrong = {key: s for key, s in shown.items() if abs(s[0] - rest - int(s[1])) > 15}
    assert len(kernels) > 15 and not wrong


def test_there_are_rows_to_check():
    assert len(CHOICES) >= 10
    assert len(LOOPS) >= 5
    assert len(CONSTANTS) >= 10
