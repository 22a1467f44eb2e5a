# SPDX-License-Identifier: Apache-2.0
"""Writes mmaemu.json, what mmaemu gives: PYTHONPATH=tests python tests/truth/update_mmaemu.py.

Needs mmaemu and torch; see the extra `truth-mmaemu` in pyproject.toml.
"""

import importlib.metadata
import json

import _mma_operands as operands
from test_mmaemu import PAIRS, RECORDED, digest, emulated

if __name__ == "__main__":
    digests = {
        name: digest(emulated(*numbers, *pair))
        for pair in PAIRS
        for name, *numbers in operands.cases(*pair)
    }
    recorded = {"mmaemu": importlib.metadata.version("mmaemu"), "digests": digests}
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
