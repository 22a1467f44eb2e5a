# SPDX-License-Identifier: Apache-2.0
"""What quantizing costs in memory traffic with what comes before it in one kernel: the bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import _aot
import pytest
from _source import ROOT

HERE = Path(__file__).parent
# Bytes that an element must cost: its factors, one value for each layout, and scales, which the
# programs write once more in JAX's layout.
LEAST = {
    "swiglu": 2 * 2 + 1,
    "swiglu, gate and up in one array": 2 * 2 + 1,
    "gelu": 2 + 1,
    "rms_norm": 2 + 2 + 1,  # a reading for the roots
    "rms_norm of a sum that is written too": 2 * 2 + 2 + 2 + 1,
    "gradient, along rows and tokens": 2 + 2 * 1,
}


@pytest.mark.slow
@pytest.mark.skipif(bool(_aot.missing()), reason=f"XLA:GPU: {_aot.missing()}")
def test_every_array_is_read_once(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, HERE / "_producer_bytes.py", tmp_path / "results.json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]
    results = json.loads((tmp_path / "results.json").read_text())
    scales = 3 * 4 / 128
    for name, (apart, fused) in results.items():
        layouts = 2 if name.startswith("gradient") else 1
        assert fused <= LEAST[name] + layouts * scales + 0.01
        assert apart >= fused + 2 - 0.01  # beside what there is of a row or a column
    page = (ROOT / "docs" / "models.md").read_text()
    shown = page.split("<!-- producers:begin -->\n")[1].split("<!-- producers:end -->")[0]
    assert shown == run.stdout
