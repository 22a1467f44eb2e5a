# SPDX-License-Identifier: Apache-2.0
"""The sections of docs/frameworks.md, and what their tests share."""

import importlib.util
import re

import jax
import numpy as np
import pytest
from _source import ROOT

PAGE = (ROOT / "docs/frameworks.md").read_text()
# Sections of the page and the packages that they need, beside optax.
SECTIONS = {
    "Flax NNX": ["flax"],
    "Flax Linen": ["flax"],
    "Equinox": ["equinox"],
    "qwix": ["qwix"],
    "tokamax": ["tokamax"],
    "optax": [],
    "orbax": ["orbax"],
}


def needs(*packages):
    missing = [package for package in packages if not importlib.util.find_spec(package)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: docs/frameworks.md says how")


def same_bits(x, y):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def program_of(name):
    """Returns the first block of the page and those of a section, as one program."""
    setup, *parts = re.split(r"^## (.*)\n", PAGE, flags=re.MULTILINE)
    assert set(parts[::2]) == {*SECTIONS, "MaxText"}
    text = setup + parts[parts.index(name) + 1]
    return "".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def run_section(name):
    """Returns the names that the program of a section leaves."""
    names = {}
    exec(program_of(name), names)
    return names
