# SPDX-License-Identifier: Apache-2.0
"""Covering sets cover what kernels can have, and the fast tier knows what it leaves out."""

import pytest
import test_simulator_suite as suite
from _special_problems import KEYS
from _tiers import PARTS, changed, covering, digest, features, rotating

from jax_fp8gemm._src.native.extension import core


def test_the_covering_set_covers():
    assert_covers(core().quantize_configs())
    chosen = assert_covers(KEYS)
    smaller = [key for key in chosen if ".m256" not in key]
    assert set().union(*map(features, smaller)) != set().union(*map(features, KEYS))


def assert_covers(keys):
    chosen = covering(keys)
    for name in dict.fromkeys(feature[0] for key in keys for feature in features(key)):
        every = {f for key in keys for f in features(key) if f[0] == name}
        assert every == {f for key in chosen for f in features(key) if f[0] == name}, name
    assert len(chosen) < len(keys) / 3
    return chosen


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
