# SPDX-License-Identifier: Apache-2.0
"""Covering sets cover what kernels can have, and the fast tier knows what it leaves out."""

import json

import pytest
import test_simulator_suite as suite
from _source import python_code
from _special_problems import KEYS
from _tiers import PARTS, accept, changed, covering, digest, digests, rotating

from jax_fp8gemm._src.native.extension import core

NUM_TILES = 125  # of all families, with their clusters and splits of K


def test_the_covering_set_covers():
    """What its promise names, read off the configurations and not off their keys."""
    every = [core().describe_config(key) for key in KEYS]
    chosen = [core().describe_config(key) for key in covering(KEYS)]
    tile = ("family", "block_m", "block_n", "num_consumers", "cluster_m", "cluster_n", "split_k")
    for fields in (
        tile,
        ("a_type", "b_type", "d_type", "accumulate"),
        ("family", "a_type", "b_type"),
        ("family", "d_type", "accumulate"),
    ):
        assert values(fields, chosen) == values(fields, every), fields
    assert len(values(tile, every)) == NUM_TILES
    assert len(chosen) < len(KEYS) / 3
    assert values(tile, [c for c in chosen if c["block_m"] != 256]) != values(tile, every)


def values(fields, configs):
    return {tuple(config[field] for field in fields) for config in configs}


def test_the_covering_set_of_quantizers_covers():
    keys = [key.split(".") for key in core().quantize_configs()]
    chosen = [key.split(".") for key in covering(core().quantize_configs())]
    for i in (1, 2, 3):
        assert {(key[0], key[i]) for key in chosen} == {(key[0], key[i]) for key in keys}
    assert len(chosen) < len(keys) / 3


def test_every_mode_and_every_mode_kernel_has_its_turn():
    fast = [each.values for each in suite.EVERY_MODE if not each.marks]
    assert {key for key, _ in fast} == set(suite.MODE_KEYS)
    assert [mode for mode in suite.MODES if mode not in [m for _, m in fast]] == []
    in_turn = {KEYS.index(key) % len(suite.MODES) for key in covering(KEYS)}
    assert in_turn == set(range(len(suite.MODES)))


def test_rotating_takes_one_in_a_period():
    pairs = rotating("abc", range(4), 2)
    assert [pair.values for pair in pairs if not pair.marks] == [
        ("a", 0),
        ("a", 2),
        ("b", 1),
        ("b", 3),
        ("c", 0),
        ("c", 2),
    ]


def test_the_full_tier_has_passed_with_these_sources(request):
    """Where it has not, `make test-all` must pass; then it writes the stamp."""
    if request.config.option.markexpr != "not slow":
        pytest.skip("for the fast tier: this run leaves nothing out by itself")
    assert changed() == [], "run make test-all, and commit tests/full_tier.json"


def test_digests_see_code_and_not_comments(tmp_path, monkeypatch):
    import _tiers

    file = tmp_path / "a.h"
    monkeypatch.setattr(_tiers, "ROOT", tmp_path)
    monkeypatch.setitem(PARTS, "one", ("a.h",))

    def of(text):
        file.write_text(text)
        return digest("one")

    assert of("int a;  // one\n") == of("// two\nint a;\n")
    assert of('auto s = "// one";\n') != of('auto s = "// two";\n')
    assert of("int a;\n") != of("int b;\n")


def test_digests_of_python_see_every_string_that_is_no_docstring():
    code = python_code
    assert code('"""a"""\nx = 1  # b\n') == code('"""c"""\nx = 1\n')
    assert code('x = "# a"\n') != code('x = "# b"\n')
    assert code('x = """a"""\n') != code('x = """b"""\n')


@pytest.mark.parametrize(
    ("reason", "is_accepted"),
    [
        ("needs a Hopper GPU: JAX finds no CUDA device", True),
        ("no NVRTC wheel is installed", False),
    ],
)
def test_a_run_that_left_out_what_it_must_have_gets_no_stamp(
    reason, is_accepted, tmp_path, monkeypatch
):
    import _tiers

    monkeypatch.setattr(_tiers, "STAMP", tmp_path / "stamp.json")
    results = tmp_path / "results.xml"
    results.write_text(f'<a><testcase><skipped message="{reason}"/></testcase></a>')
    before = tmp_path / "before.json"
    before.write_text(json.dumps(digests()))
    assert (accept(str(before), str(results)) == 0) == is_accepted
    assert (changed() == []) == is_accepted
    before.write_text(json.dumps(digests() | {"host": "of another file"}))
    assert accept(str(before), str(results)) == 1
